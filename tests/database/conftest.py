"""A small database, built for real: twelve photographs, a tiny encoder, no cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import (
    BuildConfig,
    DatabaseBuilder,
    NeighborConfig,
    RetrievalDatabase,
    build_neighbors,
)
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.building.results import BuildResult
from rdm.database.changes.plan import Removal
from rdm.sources import CropConfig, QuerySetConfig

INLINE = ComputeConfig(dask="inline")


@pytest.fixture(scope="session")
def build(tiny_encoder: str) -> Callable[..., BuildResult]:
    """Return `build(root, photos, **fields)`, which builds a database and returns the summary."""

    def run(root: Path, photos: Path, **fields: object) -> BuildResult:
        config = {
            "source": f"folder://{photos}",
            "encoder": tiny_encoder,
            "precision": "float32",
            "images_per_shard": 5,
            "crop": CropConfig(frame_size=40, patch_size=24),
            **fields,
        }
        return run_build(DatabaseBuilder(str(root), BuildConfig.model_validate(config)), INLINE)

    return run


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    build: Callable[..., BuildResult],
    encoded: Callable[..., bytes],
) -> Path:
    """A folder with `photos` and the database `db` over them; copy it before changing it."""
    base = tmp_path_factory.mktemp("built")
    (base / "photos").mkdir()
    for number in range(12):
        (base / "photos" / f"p{number:02d}.jpg").write_bytes(encoded(number))
    build(base / "db", base / "photos")
    return base


@pytest.fixture(scope="session")
def database(built: Path) -> RetrievalDatabase:
    """The unchanged database."""
    return RetrievalDatabase.open(str(built / "db"))


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A copy of the database whose source is a copy of the photographs: both may be changed."""
    shutil.copytree(built / "photos", tmp_path / "photos")
    return tmp_path / "db"


@pytest.fixture(scope="session")
def living_base(
    tmp_path_factory: pytest.TempPathFactory, built: Path, build: Callable[..., BuildResult]
) -> Path:
    """A database whose source is a link, `photos` beside it, for each test to lead to its own."""
    base = tmp_path_factory.mktemp("living")
    (base / "photos").symlink_to(built / "photos")
    build(base / "db", base / "photos")
    return base


@pytest.fixture
def living_root(root: Path, tmp_path: Path, living_base: Path) -> Path:
    """A database of its own over `tmp_path / "photos"`."""
    (living_base / "photos").unlink()
    (living_base / "photos").symlink_to(tmp_path / "photos")
    shutil.copytree(living_base / "db", root)
    return root


@pytest.fixture
def buildable_root(root: Path, tmp_path: Path, build: Callable[..., BuildResult]) -> Path:
    """The same, built here: a second build finds the source it is given, under its own path."""
    build(root, tmp_path / "photos")
    return root


@dataclass(frozen=True)
class Tabled:
    """A database, version 3, with an exact neighbor table `train` and an approximate one `fast`."""

    root: Path
    photos: Path
    queries: QuerySetConfig

    def update(self, removal: Removal | None = None, overrides: Sequence[str] = ()) -> BuildResult:
        """Bring the database up to date."""
        return run_build(update_builder(str(self.root), removal, overrides=overrides), INLINE)

    def table(self, name: str, k_stored: int, *, exact: bool, **fields: Any) -> None:
        """Look the query set up and store its neighbors."""
        config = NeighborConfig(queries=self.queries, k_stored=k_stored, exact=exact, **fields)
        with compute_pool(INLINE) as pool:
            build_neighbors(str(self.root), name, config, pool)


@pytest.fixture(scope="session")
def tabled_base(
    tmp_path_factory: pytest.TempPathFactory,
    build: Callable[..., BuildResult],
    encoded: Callable[..., bytes],
) -> Tabled:
    base = tmp_path_factory.mktemp("tabled")
    for name, seeds in (("photos", range(12)), ("queries", range(100, 110))):
        (base / name).mkdir()
        for number, seed in enumerate(seeds):
            (base / name / f"{name[0]}{number:02d}.jpg").write_bytes(encoded(seed))
    build(base / "db", base / "photos")
    crop = CropConfig(frame_size=40, patch_size=24)
    queries = QuerySetConfig(source=f"folder://{base}/queries", crop=crop, images_per_shard=4)
    tabled = Tabled(base / "db", base / "photos", queries)
    tabled.table("train", 5, exact=True)
    tabled.table("fast", 3, exact=False)
    shutil.copytree(base / "photos", base / "originals")
    return tabled


@pytest.fixture
def tabled(tabled_base: Tabled, tmp_path: Path) -> Iterator[Tabled]:
    """A copy of the database; its source, which its configuration names, is put back after the
    test."""
    shutil.copytree(tabled_base.root, tmp_path / "db")
    yield replace(tabled_base, root=tmp_path / "db")
    shutil.rmtree(tabled_base.photos)
    shutil.copytree(tabled_base.photos.parent / "originals", tabled_base.photos)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return a function that reads every file of a folder but the lock, which holds a process
    number."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".writer.lock"
        }

    return read
