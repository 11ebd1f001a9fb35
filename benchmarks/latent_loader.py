"""Reading a latent cache in training order: against webdataset's own pipeline, and against what an
H200 would consume.

The second ratio is computed, not measured: a training sample costs three forward passes, an H200
computes at most 989 TFLOP/s in dense bf16, of which a good run uses 45%; sixteen cores read sixteen
times what one does.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.latent_shards import SHAPE, Latents, write_cache
from benchmarks.timing import paired_ratio
from rdm.context import Context
from rdm.models.unet import build_denoiser, rdm_imagenet_denoiser
from rdm.training.data.batches import BatchReader
from rdm.training.data.latent_cache import LatentCache
from rdm.training.data.order import DataOrder

SHARDS, ROWS, BATCH = 4, 1000, 64
H200_FLOPS, UTILIZATION, CORES = 989e12, 0.45, 16
NEIGHBORS = 4


def run() -> str:
    """Return the ratios in words."""
    count = SHARDS * ROWS
    with tempfile.TemporaryDirectory() as directory:
        cache = write_cache(Path(directory) / "cache", SHARDS, ROWS)
        ratio, ours, theirs = paired_ratio(lambda: read(cache), lambda: _read_webdataset(cache))
        per_core = samples_per_core_second(cache)
    consumed = H200_FLOPS * UTILIZATION / training_flops()
    return (
        f"{ratio:.1f}x webdataset ({count / ours:,.0f} against {count / theirs:,.0f} "
        "latents/s of 64x64x3, one "
        f"process); {per_core:,.0f} per second of one core; computed: {CORES} cores read "
        f"{CORES * per_core / consumed:,.0f}x the {consumed:,.0f} samples/s of an H200 at "
        f"{UTILIZATION:.0%} "
        f"({training_flops() / 1e9:,.0f} GFLOP per sample)"
    )


def read(cache: LatentCache) -> None:
    """Read an epoch in batches."""
    data = Latents(cache)
    order = DataOrder([shard.num_samples for shard in data.shards], seed=0)
    with BatchReader(data, order) as reader:
        for start in range(0, order.num_samples - BATCH + 1, BATCH):
            reader.batch(np.arange(start, start + BATCH))
            reader.expect(np.arange(start + BATCH, start + 2 * BATCH))


def samples_per_core_second(cache: LatentCache) -> float:
    """Return samples per second of processor time, over all threads."""
    started = time.process_time()
    read(cache)
    return SHARDS * ROWS / (time.process_time() - started)


def training_flops() -> float:
    """Return the floating point operations of one training sample of rdm-imagenet: forward, and
    twice that back."""
    with torch.device("meta"):
        denoiser = build_denoiser(rdm_imagenet_denoiser())
        latents, tokens = torch.empty(1, *SHAPE), torch.empty(1, NEIGHBORS, 512)
        timesteps = torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        denoiser(latents, timesteps, Context(tokens=tokens))
    return 3.0 * counter.get_total_flops()


def _read_webdataset(cache: LatentCache) -> None:
    tars = [str(cache.folder.local(f"{stem}.tar")) for stem in cache.stems]
    pipeline = wds.WebDataset(tars, shardshuffle=SHARDS, empty_check=False).shuffle(1000).decode()
    for _ in pipeline.to_tuple("npy").batched(BATCH):
        pass
