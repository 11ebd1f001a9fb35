"""Exact nearest neighbors by a canonical score that does not depend on blocking, batch or worker count.

Stored vectors and queries are float16. The similarity of a pair is the float64 sum of its products, which are exact,
in one fixed order, rounded to float32. Blocked matrix products in 8 bits, or float32 where those are not quick, only
make the shortlist, with a margin above their error bound: see `shortlist`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from rdm.compute.capabilities import has_fast_int8
from rdm.compute.threads import ahead, single_threads
from rdm.database.shortlist import Float16, Shortlist, ShortlistPrecision, panels

BLOCK_ROWS = 262_144  # vectors whose shortlist is settled at once
QUERY_ROWS = 512  # queries at once
PANELS_AHEAD = 2  # panels that are rounded while one is compared
EXACT_ROWS = 256  # pairs compared exactly at once
INT8_QUERIES = 64  # with fewer, rounding the vectors costs more than quick products save


def quantize(embeddings: NDArray[np.floating]) -> Float16:
    """Return queries in the precision in which stored vectors lie."""
    return np.ascontiguousarray(embeddings, dtype=np.float16)


def canonical_similarities(queries: Float16, candidates: Float16) -> NDArray[np.float32]:
    """Return float32 [B, C], the similarity of each query [B, D] with its own candidates [B, C, D]."""
    return _canonical(_float64(queries)[:, None], _float64(candidates))


def _canonical(queries: NDArray[np.float64], candidates: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(queries * candidates).sum(axis=-1).astype(np.float32)


def _float64(values: Float16) -> NDArray[np.float64]:
    """Return float16 values as float64: exact, and several times as fast as numpy's own conversion."""
    import torch

    return torch.from_numpy(np.array(values)).double().numpy()


def rank(ids: NDArray[np.int64], similarities: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the positions of the k best candidates of one query: by similarity, ties by smaller id; id -1 is no
    candidate.
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
    """Return the k nearest ids [B, k] and their similarities [B, k], equal to a full comparison bit for bit.

    Args:
        queries: float16 [B, D], unit norm.
        blocks: `(first_id, vectors [N, D])` over the database; a block's row j has the id first_id + j.
        k: how many; where fewer exist, the rest has id -1 and similarity -inf.
        excluded: sorted ids that may not be found (tombstones).
        precision: of the first comparison, which decides the speed alone; None: what this processor does faster.
    """
    precision = precision or ("int8" if len(queries) >= INT8_QUERIES and has_fast_int8() else "fp32")
    best_ids = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), -np.inf, np.float32)
    chunks = [slice(start, start + QUERY_ROWS) for start in range(0, len(queries), QUERY_ROWS)]
    shortlists = [(chunk, Shortlist(queries[chunk], k, precision)) for chunk in chunks]

    def settle(chunk: slice, shortlist: Shortlist, first_id: int, vectors: Float16) -> None:
        rows, columns = shortlist.taken(vectors, best[chunk])
        exact = _compared(queries[chunk], vectors, rows, columns)
        _merge(best_ids[chunk], best[chunk], rows, columns + first_id, exact)

    with single_threads() as pool:
        for first_id, vectors in blocks:
            low, high = np.searchsorted(excluded, [first_id, first_id + len(vectors)])
            making = panels(vectors, excluded[low:high] - first_id, precision)
            for panel in ahead(pool, making, PANELS_AHEAD):
                adding = [pool.submit(shortlist.add, panel, vectors, best[chunk]) for chunk, shortlist in shortlists]
                _finish(adding)
            _finish([pool.submit(settle, *both, first_id, vectors) for both in shortlists])
    return best_ids, best


def _finish(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def _compared(
    queries: Float16, vectors: Float16, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the similarities [N] of pairs of a query and a vector."""
    wide, exact = _float64(queries), np.empty(len(rows), np.float32)
    for start in range(0, len(rows), EXACT_ROWS):  # in pieces that stay in the processor's cache
        piece = slice(start, start + EXACT_ROWS)
        exact[piece] = _canonical(wide[rows[piece]], _float64(np.take(vectors, columns[piece], axis=0)))
    return exact


def _merge(
    best_ids: NDArray[np.int64],
    best: NDArray[np.float32],
    rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    similarities: NDArray[np.float32],
) -> None:
    """Put candidates, one per element of `rows`, among the best [B, k] of their rows, in place."""
    k = best.shape[1]
    touched = np.unique(rows)
    rows = np.concatenate([np.repeat(touched, k), rows])
    ids = np.concatenate([best_ids[touched].ravel(), ids])
    similarities = np.concatenate([best[touched].ravel(), similarities])
    order = np.lexsort((ids, -similarities, rows))
    starts = np.searchsorted(rows[order], touched)
    chosen = order[starts[:, None] + np.arange(k)]
    best_ids[touched], best[touched] = ids[chosen], similarities[chosen]


def blocks_of(parts: Iterable[tuple[int, Float16]], rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Float16]]:
    """Yield the parts again in blocks of at most `rows` vectors, as `exact_search` wants them.

    Small parts that follow one another are put together: a block has its cost, however small it is.
    """
    small: list[tuple[int, Float16]] = []
    for first_id, vectors in parts:
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
    return first_id, vectors if len(parts) == 1 else np.concatenate([vectors for _, vectors in parts])
