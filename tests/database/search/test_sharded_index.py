from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database.search.sharded_index import (
    IndexedRows,
    add_rows,
    build_sharded,
    one_thread,
    train,
)
from rdm.progress import progress_to
from rdm.storage import Folder

DEAD = np.arange(0, 3000, 7)
KEYS = ["IVF1,Flat", "IVF32,Flat", "IVF16_HNSW32,SQfp16", "PCAR8,IVF16,PQ4x4"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> IndexedRows:
    """Three thousand unit vectors in five parts, one of them empty; every seventh is deleted."""
    noise = np.random.default_rng(0).standard_normal((3000, 16))
    unit = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float16)
    folder = Folder(tmp_path_factory.mktemp("rows"))
    for number, part in enumerate(np.split(unit, [700, 700, 1500, 2900])):
        folder.write_array(f"{number}.npy", part)
    return IndexedRows(folder, tuple(f"{number}.npy" for number in range(5)), DEAD)


def sharded(rows: IndexedRows, key: str, shard_rows: int, dask: str = "inline") -> bytes:
    config = ComputeConfig(dask=dask, num_workers=2, memory_fraction=0.2)
    with compute_pool(config) as pool, rows.folder.writing("merged.index") as path:
        build_sharded(rows, key, rows.living, path, shard_rows, pool)
    return rows.folder.read_bytes("merged.index")


@pytest.mark.parametrize("key", KEYS)
def test_merged_shards_equal_one_index_byte_for_byte(rows: IndexedRows, key: str) -> None:
    whole = train(rows, key, rows.living)
    with one_thread():
        for first, vectors in rows.parts:
            add_rows(whole, first, vectors, DEAD)
    expected = faiss.serialize_index(whole).tobytes()
    assert sharded(rows, key, 10_000) == expected
    assert sharded(rows, key, 1500) == expected
    assert sharded(rows, key, 1) == expected


def test_merged_index_holds_the_living_rows_under_their_ids(rows: IndexedRows) -> None:
    sharded(rows, "IVF32,Flat", 1000)
    index = faiss.read_index(
        str(rows.folder.local("merged.index")), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    )
    lists: Any = faiss.extract_index_ivf(index).invlists
    ids = [
        faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).copy() for n in range(lists.nlist)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(ids)), rows.living)


@dataclass
class StampsOfShards:
    """Notes when each unfinished file was written, and stops after so many shards."""

    folder: Folder
    shards: int = 100
    stamps: list[dict[str, int]] = field(default_factory=list)

    def start(self, stage: str, total: int, unit: str, done: int) -> None:
        self.update(done, "")

    def update(self, done: int, note: str) -> None:
        paths = self.folder.files("_markers")
        self.stamps.append(
            {path: self.folder.local(path).stat().st_mtime_ns for path in sorted(paths)}
        )
        if done == self.shards:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass


def test_unfinished_shards_are_filled_and_finished_ones_kept(rows: IndexedRows) -> None:
    expected = sharded(rows, "IVF32,Flat", 1000)
    stopped, again = StampsOfShards(rows.folder, shards=2), StampsOfShards(rows.folder)
    with progress_to(stopped), pytest.raises(KeyboardInterrupt):
        sharded(rows, "IVF32,Flat", 1000)
    assert len(stopped.stamps[-1]) == 3  # the trained index and two shards
    with progress_to(again):
        assert sharded(rows, "IVF32,Flat", 1000) == expected
    assert again.stamps[0] == stopped.stamps[-1]
    assert again.stamps[-1].items() > stopped.stamps[-1].items()
    assert rows.folder.files("_markers") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_give_the_bytes_of_one_process(rows: IndexedRows) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sharded(rows, "IVF32,Flat", 1000, dask="local") == sharded(
            rows, "IVF32,Flat", 10_000
        )
