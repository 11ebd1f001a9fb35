"""Vectors that lie as embeddings of photographs do: in clusters of very different sizes, with
noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIM = 512
_LATENT, _TOPICS, _PIECE = 48, 200, 50_000


def write_clusters(path: Path, rows: int, seed: int = 0) -> NDArray[np.float16]:
    """Write `rows` unit vectors, float16 [rows, 512], to an npy file, piece by piece; return it
    memory-mapped.

    One cluster per hundred rows, their sizes after a power law, around 200 topics, in 48 dimensions
    whose scale falls off; every vector gets noise in all 512.
    """
    rng = np.random.default_rng(seed)
    count = max(20, rows // 100)
    falling = np.exp(-np.arange(_LATENT) / 16)[:, None] / np.sqrt(_LATENT)
    projection = (rng.standard_normal((_LATENT, DIM)) * falling).astype(np.float32)
    topics = rng.standard_normal((_TOPICS, _LATENT)).astype(np.float32)
    centers = topics[rng.integers(0, _TOPICS, count)] + 0.7 * rng.standard_normal(
        (count, _LATENT)
    ).astype(np.float32)
    weights = rng.pareto(1.5, count) + 0.2
    out = np.lib.format.open_memmap(path, "w+", np.float16, (rows, DIM))
    for start in range(0, rows, _PIECE):
        size = min(_PIECE, rows - start)
        chosen = rng.choice(count, size, p=weights / weights.sum())
        latent = centers[chosen] + 0.5 * rng.standard_normal((size, _LATENT)).astype(np.float32)
        vectors = latent @ projection + 0.02 * rng.standard_normal((size, DIM)).astype(np.float32)
        out[start : start + size] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    out.flush()
    return np.load(path, mmap_mode="r")
