"""Updates against a rebuild, in one run: what adding 1%, deleting 0.1% and finding nothing changed
cost.

A folder of photographs, two patches each, with an exact neighbor table of the query half of the
samples. A rebuild is a new database of the changed folder with its table; an update is the whole of
`rdm database update`, repair of the table and audit of the index included. All of it runs in this
process: starting a program or workers costs both some seconds more. `python -m benchmarks.updates
SIZE ...` takes other numbers of photographs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import DatabaseBuilder, NeighborConfig, build_neighbors
from rdm.database.building.jobs import build_config, run_build, samples_crop, update_builder
from rdm.sources import open_source
from rdm.sources.query_set import QuerySetConfig

SIZES = (1_000, 4_000)
INLINE = ComputeConfig(dask="inline")


def run(sizes: tuple[int, ...] = SIZES) -> str:
    """Return the costs in words, size by size."""
    return "; ".join(_measured(size) for size in sizes)


def _measured(size: int) -> str:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        photographs = base / "photographs"
        photographs.mkdir()
        _write(photographs, 0, size)
        _seconds(lambda: _rebuild(base / "db", photographs))  # the encoder is loaded with this one
        _write(photographs, size, size // 100)
        adding = _seconds(lambda: _update(base / "db"))
        rebuilding = _seconds(lambda: _rebuild(base / "again", photographs))
        for path in sorted(photographs.iterdir())[: size // 1000]:
            path.unlink()
        deleting = _seconds(lambda: _update(base / "db"))
        nothing = _seconds(lambda: _update(base / "db"))
    return (
        f"{size:,} photographs: adding 1% costs {adding / rebuilding:.1%} of a rebuild "
        f"({adding:.1f} of "
        f"{rebuilding:.1f} s), deleting 0.1% {deleting / rebuilding:.1%} ({deleting:.1f} s), "
        f"no change {nothing:.1f} s"
    )


def _rebuild(root: Path, photographs: Path) -> None:
    config = build_config(f"folder://{photographs}", "samples")
    run_build(DatabaseBuilder(str(root), config), INLINE)
    queries = QuerySetConfig(source="samples://openimages-birds/queries", crop=samples_crop())
    with compute_pool(INLINE) as pool:
        build_neighbors(str(root), "queries", NeighborConfig(queries=queries), pool)


def _update(root: Path) -> None:
    run_build(update_builder(str(root)), INLINE)


def _write(folder: Path, first: int, count: int) -> None:
    """Write the embedded photographs again and again, each with its number behind the picture."""
    source = open_source("samples://openimages-birds")
    locations = source.listing()["location"].to_pylist()
    for number in range(first, first + count):
        (folder / f"{number:07d}.jpg").write_bytes(
            source.read(locations[number % len(locations)]) + b"%d" % number
        )


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(run(tuple(map(int, sys.argv[1:])) or SIZES))
