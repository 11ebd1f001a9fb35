"""Exact search over 200,000 unit vectors of 512 numbers, k = 20, against faiss IndexFlatIP: same
ids, time as a ratio.

Two kinds of vectors: random ones, and clustered ones, which are more like embeddings of
photographs. Ours also gives similarities that do not depend on blocking, and breaks ties by id;
faiss orders what it cannot tell apart otherwise, so that fewer than all positions agree. The bare
product of the shortlist is what no shortlist can be faster than.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import faiss
import numpy as np
import torch

from benchmarks.clusters import write_clusters
from benchmarks.timing import paired_ratio
from rdm.compute.machine import has_fast_int8
from rdm.database.search.exact import QUERY_ROWS, blocks_of, exact_search
from rdm.database.search.shortlist import PANEL_ROWS

K = 20


def run(rows: int = 200_000, queries: int = 2_048, dim: int = 512) -> str:
    """Return the ratios in words."""
    rng = np.random.default_rng(0)
    random = _compared(*(_unit(rng.normal(size=(count, dim))) for count in (rows, queries)))
    with tempfile.TemporaryDirectory() as directory:
        clustered = np.array(write_clusters(Path(directory) / "all.npy", rows + queries))
    rng.shuffle(clustered)
    return f"random: {random}; clustered: {_compared(clustered[queries:], clustered[:queries])}"


def _compared(vectors: np.ndarray, wanted: np.ndarray) -> str:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.astype(np.float32))
    theirs = index.search(wanted.astype(np.float32), K)[1]

    def ours() -> np.ndarray:
        return exact_search(wanted, blocks_of([(0, vectors)]), K, excluded=np.zeros(0, np.int64))[0]

    def faiss_search() -> object:
        return index.search(wanted.astype(np.float32), K)

    ratio, seconds, faiss_seconds = paired_ratio(ours, faiss_search)
    bare, _, _ = paired_ratio(lambda: _products(vectors, wanted), faiss_search)
    return (
        f"{ratio:.2f}x faiss IndexFlatIP ({seconds:.2f} s against {faiss_seconds:.2f} s), "
        f"{np.mean(ours() == theirs):.4%} of positions agree; the bare product {bare:.2f}x"
    )


def _products(vectors: np.ndarray, wanted: np.ndarray) -> None:
    """Multiply as many numbers as the shortlist does."""
    kind, product = (
        (torch.int8, torch.ops.aten._int_mm) if has_fast_int8() else (torch.float32, torch.mm)
    )
    panel = torch.ones(PANEL_ROWS, vectors.shape[1], dtype=kind)
    for start in range(0, len(wanted), QUERY_ROWS):
        some = torch.ones(len(wanted[start : start + QUERY_ROWS]), vectors.shape[1], dtype=kind)
        for _ in range(len(vectors) // PANEL_ROWS):
            product(some, panel.T)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
