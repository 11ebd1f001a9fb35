"""An inverted-file index in shards: trained once, filled on any worker, merged on the disk.

Every shard adds the rows of its embedding parts, under their patch ids, to a copy of the same
trained index. Rows are added in pieces that do not depend on how parts are dealt to shards, so any
number of shards and workers gives the same bytes. Merging copies list after list: it holds one list
of one shard in memory.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from rdm.compute.pool import Pool
from rdm.config import digest_json
from rdm.database.contract import INDEX_SCRATCH
from rdm.database.embedding_parts import EmbeddingParts, count_rows, gather
from rdm.database.search.search_parameters import open_mapped, written_lists
from rdm.storage import Folder, living_rows, sha256_file
from rdm.storage.atomic import storage_errors

ADD_ROWS = 4096  # rows that are looked up in the quantizer at once


@dataclass(frozen=True)
class IndexedRows:
    """The rows to index: paths of embedding parts in order, and sorted ids of deleted patches."""

    folder: Folder
    paths: tuple[str, ...]
    tombstones: NDArray[np.int64]

    @cached_property
    def parts(self) -> EmbeddingParts:
        """`(first patch id, memory-mapped vectors)` of each part."""
        vectors = [self.folder.read_array(path) for path in self.paths]
        starts = np.cumsum([0, *map(len, vectors)]).tolist()
        return list(zip(starts, vectors, strict=False))

    @cached_property
    def living(self) -> NDArray[np.int64]:
        """The ids of all rows that are not deleted, ascending."""
        return np.flatnonzero(living_rows(self.tombstones, 0, count_rows(self.parts)))

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change whenever a row does."""
        parts = [sha256_file(self.folder.local(path)) for path in self.paths]
        return digest_json([parts, self.tombstones.tolist()])


@dataclass(frozen=True)
class FillTask:
    """One shard of an index: the parts to add, and where the result goes."""

    folder: Folder
    trained: str
    parts: tuple[tuple[int, str], ...]
    tombstones: NDArray[np.int64]
    output: str


def fill_shard(task: FillTask) -> int:
    """Add a shard's living rows to a copy of the trained index, write it; return their number.

    A finished shard stays: the folder's name says what it was filled with.
    """
    folder = task.folder
    if folder.exists(task.output):
        return int(open_mapped(folder.local(task.output)).ntotal)

    index = faiss.read_index(str(folder.local(task.trained)))
    # One thread, so that sums do not depend on the machine.
    with one_thread():
        for first, part in task.parts:
            add_rows(index, first, folder.read_array(part), task.tombstones)

    with folder.writing(task.output) as path:
        write_index(index, path, folder.describe(task.output))
    return int(index.ntotal)


def add_rows(
    index: faiss.Index, first: int, vectors: NDArray[np.float16], tombstones: NDArray[np.int64]
) -> None:
    """Add a part's living rows under their patch ids, in pieces counted from its first row."""
    # The pieces are the same however parts are dealt to shards: sums in faiss may depend on how
    # many rows come at once.
    for start in range(0, len(vectors), ADD_ROWS):
        ids = np.arange(first + start, first + min(start + ADD_ROWS, len(vectors)), dtype=np.int64)
        alive = living_rows(tombstones, first + start, len(ids))
        if alive.any():
            index.add_with_ids(
                np.asarray(vectors[start : start + ADD_ROWS][alive], np.float32), ids[alive]
            )


def train(rows: IndexedRows, key: str, sample: NDArray[np.int64]) -> faiss.Index:
    """Return an empty index of the kind that a key of faiss names, trained on a sample of ids."""
    index = faiss.index_factory(rows.parts[0][1].shape[1], key, faiss.METRIC_INNER_PRODUCT)
    # With several threads, two builds of the same vectors may differ.
    with one_thread():
        index.train(np.asarray(gather(rows.parts, np.sort(sample)), np.float32))
    return index


def build_sharded(
    rows: IndexedRows,
    key: str,
    sample: NDArray[np.int64],
    target: Path,
    shard_rows: int,
    pool: Pool,
) -> None:
    """Train an index, fill its shards on the workers and merge them into the file `target`.

    A killed run's shards of the same index over the same rows are used again.
    """
    # The scratch folder's name is a digest of all that decides the result.
    folder = rows.folder
    place = f"{INDEX_SCRATCH}/{digest_json([key, rows.digest(), shard_rows, sample.tolist()])}"

    trained = f"{place}/trained.index"
    if not folder.exists(trained):
        empty = train(rows, key, sample)
        with folder.writing(trained) as path:
            write_index(empty, path, folder.describe(trained))

    # Fill the shards on the workers.
    tasks = [
        FillTask(folder, trained, shard, rows.tombstones, f"{place}/{number:05d}.index")
        for number, shard in enumerate(_deal(rows, shard_rows))
    ]
    list(pool.map(fill_shard, tasks, stage="index", names=[task.output for task in tasks]))

    # Merge; only then the shards are no longer needed.
    merge_shards(folder, trained, [task.output for task in tasks], target)
    folder.delete(INDEX_SCRATCH)


def _deal(rows: IndexedRows, shard_rows: int) -> list[tuple[tuple[int, str], ...]]:
    """Return the parts of each shard: consecutive, of up to `shard_rows` rows or one part."""
    shards: list[list[tuple[int, str]]] = []
    begun = 0
    for (first, vectors), path in zip(rows.parts, rows.paths, strict=True):
        if not shards or first + len(vectors) - begun > shard_rows:
            shards.append([])
            begun = first
        shards[-1].append((first, path))
    return [tuple(shard) for shard in shards]


def merge_shards(folder: Folder, trained: str, shards: Sequence[str], target: Path) -> None:
    """Write one index with the lists of all shards, each list in the order of the shards.

    The file is what faiss would write of it in memory: its head, then the sizes of the lists, then
    the lists.
    """
    empty = faiss.read_index(str(folder.local(trained)))
    # Opened memory-mapped, and held: their lists are parts of them.
    opened = [open_mapped(folder.local(shard)) for shard in shards]
    lists: list[Any] = [faiss.extract_index_ivf(index).invlists for index in opened]
    inverted: Any = faiss.extract_index_ivf(empty).invlists

    # [S, L]: how long each list is in each shard.
    sizes = np.array(
        [[part.list_size(n) for n in range(inverted.nlist)] for part in lists], np.uint64
    )
    totals = sizes.sum(axis=0)

    # The head of an index without lists, but with the final number of rows.
    faiss.extract_index_ivf(empty).ntotal = empty.ntotal = int(totals.sum())
    head = faiss.serialize_index(empty).tobytes()
    tail = written_lists(inverted)
    if not head.endswith(tail):
        raise AssertionError("this release of faiss does not write the inverted lists last")

    # List after list: the memory of one list of one shard is enough.
    with open(target, "wb") as file:
        file.write(head[: -len(tail)])
        file.write(tail[:-_SPARSE_BYTES])
        file.write(_written_sizes(totals))
        for number in range(inverted.nlist):
            _copy_list(lists, number, inverted.code_size, file)


def head_bytes(index: faiss.Index, num_bytes: int) -> int:
    """Return the bytes of an index file before the lists: quantizers and the lists' sizes."""
    return num_bytes - int(index.ntotal) * (faiss.extract_index_ivf(index).code_size + 8)


def write_index(index: faiss.Index, path: Path, where: str) -> None:
    """Write an index to a file.

    Raises:
        StorageError: the disk is full, or the file cannot be written. faiss's own writer is silent
            where the last bytes do not fit.
    """
    failures: list[OSError] = []

    # faiss calls this from C++, where an exception would be lost: keep it.
    def write(data: bytes) -> None:
        try:
            if not failures:
                file.write(data)
        except OSError as error:
            failures.append(error)

    with storage_errors(where), open(path, "wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(write, _PIECE_BYTES))
        if failures:
            raise failures[0]


_PIECE_BYTES = 1 << 20
_SPARSE_BYTES = 12  # of an empty index: "sprs" and the number of lists that are not empty, 0


def _written_sizes(totals: NDArray[np.uint64]) -> bytes:
    """Return the sizes of lists [N] as faiss writes them: all, or number and size of non-empty."""
    # faiss's own rule: "full" where more than half of the lists are used, else "sparse" pairs.
    used = np.flatnonzero(totals)

    if len(used) > len(totals) / 2:
        return b"full" + struct.pack("<Q", len(totals)) + totals.astype("<u8").tobytes()
    pairs = np.stack([used.astype(np.uint64), totals[used]], axis=1)
    return b"sprs" + struct.pack("<Q", pairs.size) + pairs.astype("<u8").tobytes()


def _copy_list(shards: Sequence[Any], number: int, code_size: int, file: BinaryIO) -> None:
    """Write one list of all shards: first all codes, then all ids, as faiss stores a list."""
    held = [shard for shard in shards if shard.list_size(number)]
    for shard in held:
        codes = shard.get_codes(number)
        file.write(faiss.rev_swig_ptr(codes, shard.list_size(number) * code_size).tobytes())
        shard.release_codes(number, codes)

    for shard in held:
        ids = shard.get_ids(number)
        file.write(faiss.rev_swig_ptr(ids, shard.list_size(number)).tobytes())
        shard.release_ids(number, ids)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have faiss compute with one thread, so that sums do not depend on the machine."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
