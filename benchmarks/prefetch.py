"""What a step waits for a slow object store: shards ahead in the background, against none."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem

from benchmarks.latent_shards import Latents, write_cache
from rdm.storage import Folder
from rdm.training.data.batches import BatchReader
from rdm.training.data.latent_cache import LatentCache
from rdm.training.data.order import DataOrder

SHARDS, ROWS, BATCH = 6, 640, 64
STORE = "slow://prefetch"
STEP_SECONDS = 0.05
LATENCY_SECONDS, BYTES_PER_SECOND = 0.1, 100e6


class SlowStore(MemoryFileSystem):
    """Files in memory that take as long to fetch as from a distant store."""

    protocol = "slow"

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """Return a file after the time that it takes."""
        data = super().cat_file(path, start, end, **options)
        time.sleep(LATENCY_SECONDS + len(data) / BYTES_PER_SECOND)
        return data


def run() -> str:
    """Return the times in words."""
    fsspec.register_implementation("slow", SlowStore, clobber=True)
    with tempfile.TemporaryDirectory() as directory:
        write_cache(Path(directory) / "cache", SHARDS, ROWS)
        for path in (Path(directory) / "cache").iterdir():
            Folder(STORE).write_bytes(path.name, path.read_bytes())
    cache = LatentCache(STORE)
    without, with_it = _step_seconds(cache, 0), _step_seconds(cache, 2)
    return (
        f"{without / with_it:.2f}x: a step of {STEP_SECONDS * 1e3:.0f} ms takes "
        f"{with_it * 1e3:.0f} ms with shards "
        f"ahead, {without * 1e3:.0f} ms without (a store of {LATENCY_SECONDS * 1e3:.0f} ms and "
        f"{BYTES_PER_SECOND / 1e6:.0f} MB/s)"
    )


def _step_seconds(cache: LatentCache, ahead: int) -> float:
    """Return the mean time of the steps of an epoch, the first one aside: nothing can be ahead of
    that."""
    data = Latents(cache)
    order = DataOrder([shard.num_samples for shard in data.shards], seed=0)
    with BatchReader(data, order, ahead=ahead, memory_bytes=100_000_000) as reader:
        starts = range(0, order.num_samples, BATCH)
        for start in starts:
            reader.batch(np.arange(start, start + BATCH))
            if start == 0:
                began = time.perf_counter()
            if ahead:
                reader.expect(np.arange(start + BATCH, start + 2 * BATCH))
            time.sleep(STEP_SECONDS)  # the accelerator's work
        return (time.perf_counter() - began) / len(starts)
