"""Exact nearest neighbors by a canonical score that does not depend on blocking, batch or worker count.

Stored vectors and queries are float16. The similarity of a pair is the float64 sum of its products, which are exact,
in one fixed order, rounded to float32. Blocked matrix products in bfloat16, or float32 where that is faster, only make
the shortlist, with a margin above their error bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rdm.compute.capabilities import has_fast_bfloat16

if TYPE_CHECKING:
    from torch import Tensor

Float16 = NDArray[np.float16]
ShortlistPrecision: TypeAlias = Literal["bf16", "fp32"]

BLOCK_ROWS = 16_384  # vectors at once
QUERY_ROWS = 512  # queries at once: bounds the scores that lie in memory
GROUP_ROWS = 64  # vectors whose greatest score is looked at before their own
PAIR_ROWS = 1 << 17  # scores looked at singly at once: bounds the memory where everything is alike


def quantize(embeddings: NDArray[np.floating]) -> Float16:
    """Return queries in the precision in which stored vectors lie."""
    return np.ascontiguousarray(embeddings, dtype=np.float16)


def canonical_similarities(queries: Float16, candidates: Float16) -> NDArray[np.float32]:
    """Return float32 [B, C], the similarity of each query [B, D] with its own candidates [B, C, D]."""
    products = _float64(queries)[:, None, :] * _float64(candidates)
    return np.ascontiguousarray(products).sum(axis=-1).astype(np.float32)


def _float64(values: Float16) -> NDArray[np.float64]:
    """Return float16 values as float64: exact, and several times as fast as numpy's own conversion."""
    import torch

    return torch.from_numpy(np.array(values)).double().numpy()


def shortlist_margin(dim: int, precision: ShortlistPrecision = "fp32") -> float:
    """Return a bound on twice the error of a dot product of float16 vectors of norm <= 1.01, summed in any order.

    `fp32`: |fl(x.y) - x.y| <= n u / (1 - n u) |x|.|y| with u = 2^-24 (Higham 2002, eq. 3.5); products of float16 are
    exact in float32. `bf16`: both factors and the result are rounded to 8 significant bits besides (u = 2^-8), and
    the sum may lose two bits more, since processors accumulate pairs with truncation.
    """
    unit = dim * 2.0**-24
    if precision == "fp32":
        return 2 * unit / (1 - unit) * 1.01**2 + 2.0**-23
    return 2 * ((1 + 2.0**-8) ** 3 * (1 + 4 * unit / (1 - 4 * unit)) - 1) * 1.01**2 + 2.0**-22


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
    precision = precision or ("bf16" if has_fast_bfloat16() else "fp32")
    best_ids = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for first_id, vectors in blocks:
        low, high = np.searchsorted(excluded, [first_id, first_id + len(vectors)])
        shortlist = _Shortlist(np.asarray(vectors), excluded[low:high] - first_id, precision)
        for start in range(0, len(queries), QUERY_ROWS):
            chunk = slice(start, start + QUERY_ROWS)
            for rows, columns in shortlist.candidates(queries[chunk], k, best[chunk, -1]):
                exact = canonical_similarities(queries[chunk][rows], shortlist.vectors[columns][:, None])[:, 0]
                _merge(best_ids[chunk], best[chunk], rows, columns + first_id, exact)
    return best_ids, best


class _Shortlist:
    """The rows of one block that may be among a query's nearest, by products with a bound on their error."""

    def __init__(self, vectors: Float16, dead: NDArray[np.int64], precision: ShortlistPrecision) -> None:
        import torch

        self.vectors = vectors
        self._dead = torch.from_numpy(dead)
        self._precision: ShortlistPrecision = precision
        self._type = torch.bfloat16 if precision == "bf16" else torch.float32
        padded = torch.zeros(-(-len(vectors) // GROUP_ROWS) * GROUP_ROWS, vectors.shape[1], dtype=self._type)
        padded[: len(vectors)] = torch.from_numpy(np.array(vectors)).to(self._type)
        self._padded = padded

    def candidates(
        self, queries: Float16, k: int, least: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield `(rows, columns)` of pairs of query and vector, in pieces; none that is among the k nearest is missing.

        Args:
            queries: float16 [B, D].
            k: how many are wanted.
            least: float32 [B], similarities that a neighbor must reach.
        """
        import torch

        wide = torch.from_numpy(np.array(queries))  # a copy: memory maps cannot be written, and PyTorch minds
        scores = wide.to(self._type) @ self._padded.T
        scores[:, len(self.vectors) :] = -torch.inf
        scores[:, self._dead] = -torch.inf
        groups = scores.view(len(queries), -1, GROUP_ROWS)
        maxima = groups.amax(dim=2)
        # The k-th largest of the groups' maxima is at most the k-th largest score.
        found = maxima.topk(k, dim=1).values[:, -1].float() if k <= maxima.shape[1] else torch.tensor(-torch.inf)
        margin = shortlist_margin(queries.shape[1], self._precision)
        threshold = torch.maximum(found, torch.from_numpy(least)) - margin
        threshold = threshold.clamp(min=torch.finfo(torch.float32).min)  # the dead have -inf
        row, group = (maxima.float() >= threshold[:, None]).nonzero(as_tuple=True)
        for start in range(0, len(row), PAIR_ROWS // GROUP_ROWS):
            piece = slice(start, start + PAIR_ROWS // GROUP_ROWS)
            rows, places = row[piece], group[piece]
            pair, inside = (groups[rows, places].float() >= threshold[rows][:, None]).nonzero(as_tuple=True)
            rows, columns = rows[pair], places[pair] * GROUP_ROWS + inside
            if self._precision == "bf16":
                rows, columns = self._refined(wide, rows, columns, k, torch.from_numpy(least))
            yield rows.numpy(), columns.numpy()

    def _refined(self, queries: Tensor, rows: Tensor, columns: Tensor, k: int, least: Tensor) -> tuple[Tensor, Tensor]:
        """Compare the pairs again in float32, whose margin is a thousandth of bfloat16's."""
        import torch

        vectors = torch.from_numpy(self.vectors[columns.numpy()]).float()
        scores = (queries[rows].float() * vectors).sum(dim=1)
        threshold = torch.maximum(_kth_largest(rows, scores, k, len(queries)), least)
        keep = scores >= (threshold - shortlist_margin(vectors.shape[1], "fp32"))[rows]
        return rows[keep], columns[keep]


def _kth_largest(rows: Tensor, scores: Tensor, k: int, count: int) -> Tensor:
    """Return the k-th largest score of each row number 0..count-1, float32 [count]; -inf where there are fewer."""
    import torch

    order = torch.from_numpy(np.lexsort((-scores.numpy(), rows.numpy())))
    sizes = torch.bincount(rows, minlength=count)
    place = sizes.cumsum(0) - sizes + k - 1
    result = torch.full((count,), -torch.inf)
    enough = sizes >= k
    result[enough] = scores[order][place[enough]]
    return result


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
    """Yield the parts again in blocks of at most `rows` vectors, so that a block of scores stays in the cache."""
    for first_id, vectors in parts:
        for start in range(0, len(vectors), rows):
            yield first_id + start, vectors[start : start + rows]
