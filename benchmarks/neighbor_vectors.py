"""Neighbors by memory map against neighbors inlined in the cache, from a local disk whose pages are
not in memory."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.latent_shards import write_cache, write_database
from rdm.compute import ComputeConfig, compute_pool
from rdm.training.data.batches import BatchReader
from rdm.training.data.inlined_neighbors import inline_neighbors
from rdm.training.data.order import DataOrder
from rdm.training.data.rows import TrainingRows
from rdm.training.objectives.generative import GenerativeConfig

SHARDS, ROWS, BATCH = 4, 1000, 64
PATCHES, DIM, STORED = 200_000, 512, 20
LATENT = (3, 16, 16)  # small, so that the neighbors are most of what is read


def run() -> str:
    """Return both ways in words."""
    found = []
    config = GenerativeConfig(held_out_fraction=0.0)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        cache = write_cache(root / "cache", SHARDS, ROWS, LATENT)
        write_database(root / "db", cache, PATCHES, DIM, STORED)
        for way in ("memory map", "inlined"):
            if way == "inlined":
                with compute_pool(ComputeConfig(dask="inline")) as pool:
                    inline_neighbors(str(root / "cache"), str(root / "db"), pool)
            data = TrainingRows.open(str(root / "cache"), str(root / "db"), config)
            cold, num_bytes = _read(data, root, drop=True)
            warm, _ = _read(data, root, drop=False)
            found.append(
                f"{way}: {cold:,.0f} samples/s cold, {warm:,.0f} warm, {num_bytes:,.0f} "
                "bytes read per sample"
            )
        stored = sum(path.stat().st_size for path in (root / "cache").glob("*.neighbors.npy")) / (
            SHARDS * ROWS
        )
    return f"{'; '.join(found)}; inlined takes {stored:,.0f} bytes per sample of disk"


def _read(data: TrainingRows, root: Path, *, drop: bool) -> tuple[float, float]:
    """Return samples per second of an epoch, and the bytes that came from the disk for each."""
    if drop:
        _drop_pages(root)
    order = DataOrder([shard.num_samples for shard in data.shards], seed=0)
    before, started = _bytes_read(), time.perf_counter()
    with BatchReader(data, order) as reader:
        for start in range(0, order.num_samples - BATCH + 1, BATCH):
            reader.batch(np.arange(start, start + BATCH))
    seconds = time.perf_counter() - started
    return order.num_samples / seconds, (_bytes_read() - before) / order.num_samples


def _drop_pages(root: Path) -> None:
    """Ask the kernel to forget the pages of all files below a folder."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])
