"""What the programs that kill the database's writers have them do: a build, an update with a
removal, a compaction."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import autofaiss  # noqa: F401  loaded before the forks
import numpy as np
import open_clip
import torch
from file_kills import assert_same

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import (
    BuildConfig,
    DatabaseBuilder,
    NeighborConfig,
    RetrievalDatabase,
    build_neighbors,
)
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database
from rdm.encoders import load_encoder
from rdm.sources import CropConfig, QuerySetConfig
from rdm.storage import Folder, VersionStore

INLINE = ComputeConfig(dask="inline")
REMOVAL = Removal(frozenset(["p01.jpg"]))


@dataclass(frozen=True)
class Work:
    """One job: the folder that it starts from (none for a build), what it does, and what it leaves
    undisturbed."""

    name: str
    start: Path
    run: Callable[[Path, ComputeConfig], object]
    expected: dict[str, bytes]

    def prepare(self, root: Path) -> None:
        """Lay the folder that the job starts from down, in the place of what is there."""
        shutil.rmtree(root, ignore_errors=True)
        if self.start.exists():
            shutil.copytree(self.start, root)

    def check_survivor(self, root: Path, step: int) -> None:
        """Raise AssertionError unless what a killed run left is the old version or the new one,
        whole."""
        current = VersionStore(Folder(root)).current()
        if self.start.exists():
            assert current is not None, f"step {step}: the old version is gone"
            old = RetrievalDatabase.open(str(self.start))
            if current.tombstones == old.version.tombstones:
                queries = old.embeddings(old.living_ids()[:3])
                found = RetrievalDatabase.open(str(root)).search_vectors(queries, 5)[0]
                assert np.array_equal(found, old.search_vectors(queries, 5)[0]), (
                    f"step {step}: other neighbors"
                )
        if current is not None:
            assert not verify_database(str(root)), f"step {step}: {verify_database(str(root))}"

    def check_finished(self, root: Path, step: int) -> None:
        """Raise AssertionError unless every file is what an undisturbed run leaves."""
        assert_same(contents(root), self.expected, step)


def contents(root: Path) -> dict[str, bytes]:
    """Return every file but the lock."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".writer.lock"
    }


def register_encoder(base: Path | str) -> None:
    """Tell open_clip of the tiny encoder; one thread, so that processes may fork."""
    torch.set_num_threads(1)
    open_clip.add_model_config(Path(base) / "tiny-clip.json")


def works(base: Path, encoder: str) -> Iterator[Work]:
    """Yield the three jobs, one after another: each starts from what the one before leaves.

    Args:
        base: a folder with `photos`, `more` (what the update adds), `queries` and `tiny-clip.json`.
        encoder: the encoder's name.
    """
    register_encoder(base)
    load_encoder(encoder)
    crop = CropConfig(frame_size=40, patch_size=24)
    config = BuildConfig(
        source=f"folder://{base}/photos", encoder=encoder, images_per_shard=3, crop=crop
    )
    queries = QuerySetConfig(source=f"folder://{base}/queries", crop=crop, images_per_shard=2)

    def build(root: Path, compute: ComputeConfig) -> None:
        run_build(DatabaseBuilder(str(root), config), compute)

    def update(root: Path, compute: ComputeConfig) -> None:
        run_build(update_builder(str(root), REMOVAL), compute)

    def compact(root: Path, compute: ComputeConfig) -> None:
        del compute
        compact_database(str(root))

    start, place = base / "nothing", base / "build"
    for job in (build, update, compact):
        place = base / job.__name__
        if start.exists():
            shutil.copytree(start, place)
        job(place, INLINE)
        yield Work(job.__name__, start, job, contents(place))
        if job is build:
            _prepare_update(base, place, queries)
        start = place


def _prepare_update(base: Path, root: Path, queries: QuerySetConfig) -> None:
    with compute_pool(INLINE) as pool:
        build_neighbors(
            str(root), "exact", NeighborConfig(queries=queries, k_stored=5, exclude_self=True), pool
        )
        build_neighbors(
            str(root), "fast", NeighborConfig(queries=queries, k_stored=5, exact=False), pool
        )
    for path in (base / "more").iterdir():
        shutil.copy(path, base / "photos")
    (base / "photos" / "p00.jpg").unlink()
