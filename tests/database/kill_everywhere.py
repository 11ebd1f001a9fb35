"""Kill a build, an update and a compaction before every write, rename, link and deletion of a file, then finish them.

Arguments: a folder with `photos`, `more` (what the update adds), `queries` and `tiny-clip.json`; the encoder's name. A
program of its own, because each kill is one fork of a process that has loaded everything and started no threads. Prints
the number of kills in each of the three.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import autofaiss  # noqa: F401  loaded before the forks
import numpy as np
import open_clip
import torch
from file_kills import assert_same, was_killed, watch_changes

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import BuildConfig, DatabaseBuilder, NeighborConfig, RetrievalDatabase, build_neighbors
from rdm.database.changes import Removal
from rdm.database.compact import compact_database
from rdm.database.jobs import run_build, update_builder
from rdm.database.verify import verify_database
from rdm.encoders import load_encoder
from rdm.sources import CropConfig, QuerySetConfig
from rdm.storage import Folder, VersionStore

INLINE = ComputeConfig(dask="inline")
REMOVAL = Removal(frozenset(["p01.jpg"]))


def contents(root: Path) -> dict[str, bytes]:
    """Return every file but the lock."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".writer.lock"
    }


def kill_everywhere(start: Path, root: Path, work: Callable[[Path], object], expected: dict[str, bytes]) -> int:
    """Kill work on copies of a folder before each change that it makes, finish it, and compare; return how many kills.

    After each kill, what stands is searched: it is the old version or the new one, whole.
    """
    old = RetrievalDatabase.open(str(start)) if start.exists() else None
    queries = old.embeddings(old.living_ids()[:3]) if old else np.zeros((0, 16), np.float16)
    neighbors = old.search_vectors(queries, 5)[0] if old else np.zeros((0, 5), np.int64)
    steps = 0
    while True:
        steps += 1
        if start.exists():
            shutil.copytree(start, root)
        if not was_killed(lambda: work(root), steps):
            shutil.rmtree(root)
            return steps - 1
        current = VersionStore(Folder(root)).current()
        assert current is not None or old is None, f"step {steps}: the old version is gone"
        if current is not None and old is not None and current.tombstones == old.version.tombstones:
            survivor = RetrievalDatabase.open(str(root))
            assert np.array_equal(survivor.search_vectors(queries, 5)[0], neighbors), f"step {steps}: other neighbors"
        if current is not None:
            assert not verify_database(str(root)), f"step {steps}: {verify_database(str(root))}"
        work(root)
        assert_same(contents(root), expected, steps)
        shutil.rmtree(root)


def main(base: Path, encoder: str) -> None:
    torch.set_num_threads(1)
    open_clip.add_model_config(base / "tiny-clip.json")
    load_encoder(encoder)
    watch_changes()
    crop = CropConfig(frame_size=40, patch_size=24)
    config = BuildConfig(source=f"folder://{base}/photos", encoder=encoder, images_per_shard=3, crop=crop)
    queries = QuerySetConfig(source=f"folder://{base}/queries", crop=crop, images_per_shard=2)

    def build(root: Path) -> None:
        run_build(DatabaseBuilder(str(root), config), INLINE)

    def update(root: Path) -> None:
        run_build(update_builder(str(root), REMOVAL), INLINE)

    def compact(root: Path) -> None:
        compact_database(str(root))

    first = base / "reference"
    build(first)
    kills = [kill_everywhere(base / "nothing", base / "db", build, contents(first))]
    with compute_pool(INLINE) as pool:
        build_neighbors(str(first), "exact", NeighborConfig(queries=queries, k_stored=5, exclude_self=True), pool)
        build_neighbors(str(first), "fast", NeighborConfig(queries=queries, k_stored=5, exact=False), pool)
    for path in (base / "more").iterdir():
        shutil.copy(path, base / "photos")
    (base / "photos" / "p00.jpg").unlink()
    for work in (update, compact):
        shutil.copytree(first, base / work.__name__)
        work(base / work.__name__)
        kills.append(kill_everywhere(first, base / "db", work, contents(base / work.__name__)))
        first = base / work.__name__
    sys.stdout.write(" ".join(map(str, kills)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
