"""A small database, built for real: twelve photographs, a tiny encoder, no cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.jobs import run_build
from rdm.sources import CropConfig

INLINE = ComputeConfig(dask="inline")


@pytest.fixture(scope="session")
def build(tiny_encoder: str) -> Callable[..., dict[str, Any]]:
    """Return `build(root, photos, **fields)`, which builds a database and returns the summary."""

    def run(root: Path, photos: Path, **fields: object) -> dict[str, Any]:
        config = {
            "source": f"folder://{photos}",
            "encoder": tiny_encoder,
            "images_per_shard": 5,
            "crop": CropConfig(frame_size=40, patch_size=24),
            **fields,
        }
        return run_build(DatabaseBuilder(str(root), BuildConfig.model_validate(config)), INLINE)

    return run


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory, build: Callable[..., dict[str, Any]], encoded: Callable[..., bytes]
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


@pytest.fixture
def living_root(root: Path, tmp_path: Path, build: Callable[..., dict[str, Any]]) -> Path:
    """A database of its own over `tmp_path / "photos"`."""
    build(root, tmp_path / "photos")
    return root


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return a function that reads every file of a folder but the lock, which holds a process number."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".writer.lock"
        }

    return read
