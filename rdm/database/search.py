"""Exact nearest neighbors by a canonical score that does not depend on blocking, batch or worker count.

Stored vectors and queries are float16. The similarity of a pair is the float64 sum of its products, which are exact,
in one fixed order, rounded to float32. Blocked float32 matrix products only make the shortlist, with a margin above
their error bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Float16 = NDArray[np.float16]


def quantize(embeddings: NDArray[np.floating]) -> Float16:
    """Return queries in the precision in which stored vectors lie."""
    return np.ascontiguousarray(embeddings, dtype=np.float16)


def canonical_similarities(queries: Float16, candidates: Float16) -> NDArray[np.float32]:
    """Return float32 [B, C], the similarity of each query [B, D] with its own candidates [B, C, D]."""
    products = queries[:, None, :].astype(np.float64) * candidates.astype(np.float64)
    return np.ascontiguousarray(products).sum(axis=-1).astype(np.float32)


def shortlist_margin(dim: int) -> float:
    """Return a bound on twice the error of a float32 dot product of vectors of norm <= 1.01, summed in any order.

    |fl(x.y) - x.y| <= n u / (1 - n u) |x|.|y| with u = 2^-24 (Higham 2002, eq. 3.5); products of float16 are exact
    in float32.
    """
    unit = dim * 2.0**-24
    return 2 * unit / (1 - unit) * 1.01**2 + 2.0**-23


def rank(ids: NDArray[np.int64], similarities: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the positions of the k best candidates of one query: by similarity, ties by smaller id; id -1 is no
    candidate.
    """
    order = np.lexsort((ids, -similarities))
    return order[ids[order] >= 0][:k]


def exact_search(
    queries: Float16, blocks: Iterable[tuple[int, Float16]], k: int, *, excluded: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k nearest ids [B, k] and their similarities [B, k], equal to a full comparison bit for bit.

    Args:
        queries: float16 [B, D], unit norm.
        blocks: `(first_id, vectors [N, D])` over the database; a block's row j has the id first_id + j.
        k: how many; where fewer exist, the rest has id -1 and similarity -inf.
        excluded: sorted ids that may not be found (tombstones).
    """
    count, dim = queries.shape
    margin = shortlist_margin(dim)
    wide = queries.astype(np.float32)
    best_ids = np.full((count, k), -1, np.int64)
    best = np.full((count, k), -np.inf, np.float32)
    for first_id, vectors in blocks:
        scores = wide @ np.asarray(vectors, np.float32).T
        dead = (
            excluded[np.searchsorted(excluded, first_id) : np.searchsorted(excluded, first_id + len(vectors))]
            - first_id
        )
        scores[:, dead] = -np.inf
        width = min(k, scores.shape[1])
        kth = np.partition(scores, -width, axis=1)[:, -width]
        # Nothing under the block's own k-th score, nor under the k-th found so far, can enter, errors included.
        threshold = np.maximum(kth, best[:, -1]) - margin
        for row in np.flatnonzero((scores >= threshold[:, None]).any(axis=1)):
            local = np.flatnonzero((scores[row] >= threshold[row]) & np.isfinite(scores[row]))
            exact = canonical_similarities(queries[row : row + 1], np.asarray(vectors[local])[None])[0]
            ids = np.concatenate([best_ids[row], local + first_id])
            similarities = np.concatenate([best[row], exact])
            chosen = rank(ids, similarities, k)
            best_ids[row, : len(chosen)], best[row, : len(chosen)] = ids[chosen], similarities[chosen]
    return best_ids, best


def blocks_of(parts: Iterable[tuple[int, Float16]], rows: int) -> Iterator[tuple[int, Float16]]:
    """Yield the parts again in blocks of at most `rows` vectors, so that a block of scores stays in the cache."""
    for first_id, vectors in parts:
        for start in range(0, len(vectors), rows):
            yield first_id + start, vectors[start : start + rows]
