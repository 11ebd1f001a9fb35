"""Exact nearest neighbors, by a score that does not depend on blocking, batch or worker count.

Stored vectors and queries are float16. The similarity of a pair is the float64 sum of its products,
which are exact, in one fixed order, rounded to float32. Blocked matrix products in 8 bits, or
float32 where those are not quick, only say which pairs need not be compared, with a margin above
their error bound: see `shortlist`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rdm.compute.machine import has_fast_int8
from rdm.compute.threads import ahead, single_threads
from rdm.database.search.shortlist import Float16, Nearest, ShortlistPrecision, bits_of, panels

BLOCK_ROWS = 262_144  # vectors of one center
QUERY_ROWS = 256  # queries that one thread compares at once
PANELS_AHEAD = 2  # panels that are rounded while one is compared
FEW_QUERIES = 64  # up to here queries are not divided among threads


def quantize(embeddings: NDArray[np.floating]) -> Float16:
    """Return queries as float16, the precision of stored vectors."""
    return np.ascontiguousarray(embeddings, dtype=np.float16)


def canonical_similarities(queries: Float16, candidates: Float16) -> NDArray[np.float32]:
    """Return the similarity float32 [B, C] of each query [B, D] with its own candidates [B, C, D].

    All queries and candidates are float16; see `kernels` for the canonical sum.
    """
    from rdm.database.search.kernels import similarities

    out = np.empty(candidates.shape[:2], np.float32)
    similarities(queries.astype(np.float64), bits_of(candidates), out)
    return out


def rank(ids: NDArray[np.int64], similarities: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the positions of one query's k best candidates: by similarity, ties by smaller id.

    A candidate of id -1 is none.
    """
    order = np.lexsort((ids, -similarities))
    return order[ids[order] >= 0][:k]


def exact_search(
    queries: Float16,
    blocks: Iterable[tuple[int, Float16]],
    k: int,
    *,
    excluded: NDArray[np.int64],
    precision: ShortlistPrecision | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k nearest ids [B, k] and similarities [B, k], bit for bit as a full comparison.

    Args:
        queries: float16 [B, D], unit norm.
        blocks: `(first_id, vectors [N, D])` over the database; a block's row j has the id first_id
            + j.
        k: how many; where fewer exist, the rest has id -1 and similarity -inf.
        excluded: sorted ids that may not be found (tombstones).
        precision: of the first comparison, which decides the speed alone; None: the faster one
            of this processor.

    Raises:
        TypeError: the queries are not float16.
    """
    # Compiled code reads them as such, whatever they are.
    if queries.dtype != np.float16:
        raise TypeError(f"queries are {queries.dtype}, not float16")
    precision = precision or ("int8" if has_fast_int8() else "fp32")
    ids = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), -np.inf, np.float32)

    # One pass over all vectors, a block at a time, while threads hold chunks of the queries.
    with single_threads() as pool:
        nearest = [
            Nearest(queries[some], ids[some], best[some], precision)
            for some in _chunks(len(queries))
        ]

        for first_id, vectors in blocks:
            # Panels are made ahead by threads, with the tombstones that fall into the block.
            low, high = np.searchsorted(excluded, [first_id, first_id + len(vectors)])
            making = panels(first_id, vectors, excluded[low:high] - first_id, precision)
            found = ahead(pool, making, PANELS_AHEAD)

            # Each chunk's best are updated panel by panel. `ahead` lets no chunk take a panel
            # before it is done with the last one: `some.add` changes arrays in place.
            adding = (partial(some.add, panel) for panel in found for some in nearest)
            for _ in ahead(pool, adding, len(nearest) - 1):
                pass
    return ids, best


def _chunks(count: int) -> list[slice]:
    """Return slices of `count` queries: divided among the threads, in chunks of 64 to 256."""
    import torch

    rows = min(max(-(-count // torch.get_num_threads()), FEW_QUERIES), QUERY_ROWS)
    return [slice(start, start + rows) for start in range(0, count, rows)]


def blocks_of(
    parts: Iterable[tuple[int, Float16]], rows: int = BLOCK_ROWS
) -> Iterator[tuple[int, Float16]]:
    """Yield the parts again in blocks of at most `rows` vectors, as `exact_search` wants them.

    Small parts that follow one another are put together: a block has its cost, however small it is.
    """
    small: list[tuple[int, Float16]] = []

    for first_id, vectors in parts:
        # A small part joins those before it if it follows them directly and fits.
        room = rows - sum(len(some) for _, some in small)
        follows = small and first_id == small[-1][0] + len(small[-1][1])
        if small and not (follows and len(vectors) <= min(room, rows // 2)):
            yield _joined(small)
            small = []
        if 0 < len(vectors) <= rows // 2:
            small.append((first_id, vectors))
        else:
            for start in range(0, len(vectors), rows):
                yield first_id + start, vectors[start : start + rows]
    if small:
        yield _joined(small)


def _joined(parts: list[tuple[int, Float16]]) -> tuple[int, Float16]:
    first_id, vectors = parts[0]
    if len(parts) == 1:
        return first_id, vectors
    return first_id, np.concatenate([some for _, some in parts])
