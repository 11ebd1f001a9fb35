"""How index, search and updates grow with the database: seconds and peak memory at several sizes, and the exponents.

Each measurement runs in a process of its own, whose peak memory is its alone. Arguments of a measurement's process:
stage, rows, folder.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.clusters import DIM, write_clusters
from rdm.database.index import IndexConfig, ParentIndex, build_index, open_index, update_index
from rdm.database.ivf import IndexedRows
from rdm.database.search import blocks_of, exact_search
from rdm.storage import Folder

SIZES = (10_000, 100_000)
PART_ROWS = 2_500
QUERIES = 500
CONFIG = IndexConfig(audit_queries=200)


def run(sizes: tuple[int, ...] = SIZES) -> str:
    """Return a table in words: stage by stage, seconds and megabytes per size, and the fitted exponents."""
    measured: dict[str, list[tuple[int, float, float]]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as directory:
            for stage in STAGES:
                seconds, megabytes = _measured(stage, rows, directory)
                measured.setdefault(stage, []).append((rows, seconds, megabytes))
    return "; ".join(_in_words(stage, found) for stage, found in measured.items() if stage != "vectors")


def _measured(stage: str, rows: int, directory: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.growth", stage, str(rows), directory]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def _in_words(stage: str, found: list[tuple[int, float, float]]) -> str:
    points = ", ".join(f"{rows:,} rows {seconds:.2f} s {megabytes:.0f} MB" for rows, seconds, megabytes in found)
    rows, seconds, megabytes = (np.log([point[n] for point in found]) for n in range(3))
    time_exponent, memory_exponent = (np.polyfit(rows, values, 1)[0] for values in (seconds, megabytes))
    return f"{stage}: {points}, time ~ rows^{time_exponent:.2f}, memory ~ rows^{memory_exponent:.2f}"


def _vectors(folder: Folder, rows: int) -> None:
    vectors = write_clusters(folder.local("all.npy"), rows + rows // 100)
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        folder.write_array(f"img_emb/{number:05d}.npy", vectors[start : min(start + PART_ROWS, rows)])
    folder.write_array("added.npy", vectors[rows:])


def _indexed(folder: Folder, *more: str) -> IndexedRows:
    return IndexedRows(folder, (*(f"img_emb/{name}" for name in folder.names("img_emb")), *more), _NONE)


def _index(folder: Folder, rows: int) -> None:
    del rows
    build_index(_indexed(folder), CONFIG, "index/1")


def _add(folder: Folder, rows: int) -> None:
    infos = folder.read_json("index/1/index_infos.json")
    update_index(_indexed(folder, "added.npy"), CONFIG, "index/2", ParentIndex("index/1", infos, rows, _NONE))


def _exact(folder: Folder, rows: int) -> None:
    del rows
    exact_search(_queries(folder), blocks_of(_indexed(folder).parts), 20, excluded=_NONE)


def _approximate(folder: Folder, rows: int) -> None:
    del rows
    open_index(folder, "index/1").search(_queries(folder).astype(np.float32), 20)


def _queries(folder: Folder) -> np.ndarray:
    vectors = folder.read_array("all.npy")
    return np.array(vectors[:: math.ceil(len(vectors) / QUERIES)])


_NONE = np.zeros(0, np.int64)
STAGES: dict[str, Callable[[Folder, int], None]] = {
    "vectors": _vectors,
    "index": _index,
    "add 1%": _add,
    "exact search of 500": _exact,
    "approximate search of 500": _approximate,
}


def main(stage: str, rows: int, directory: Path) -> None:
    """Measure one stage in this process."""
    assert DIM == 512
    started = time.perf_counter()
    STAGES[stage](Folder(directory), rows)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
