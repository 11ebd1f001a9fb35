"""Exact nearest neighbors by a canonical score that does not depend on blocking, batch or worker count.

Stored vectors and queries are float16. The similarity of a pair is the float64 sum of its products, which are exact,
in one fixed order, rounded to float32. Blocked matrix products in bfloat16, or float32 where that is faster, only make
the shortlist, with a margin above their error bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rdm.compute.capabilities import has_fast_bfloat16

if TYPE_CHECKING:
    from torch import Tensor

Float16 = NDArray[np.float16]
ShortlistPrecision: TypeAlias = Literal["bf16", "fp32"]

BLOCK_ROWS = 262_144  # vectors whose shortlist is settled at once
PANEL_ROWS = 16_384  # vectors compared at once: a panel's scores stay in the processor's cache
QUERY_ROWS = 512  # queries at once
GROUP_ROWS = 64  # vectors whose greatest score is looked at before their own
EXACT_ROWS = 256  # pairs compared exactly at once
PAIR_ROWS = 1 << 17  # pairs that wait to be settled, for each QUERY_ROWS: bounds the memory where everything is alike


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


def product_error(dim: int) -> float:
    """Return a bound on |fl(x.y) - x.y|, float32, of vectors [dim] of norm <= 1.01, summed in any order.

    n u / (1 - n u) |x|.|y| with u = 2^-24 (Higham 2002, eq. 3.5), and four times that, since processors accumulate
    pairs of bfloat16 products with truncation.
    """
    unit = 4 * dim * 2.0**-24
    return unit / (1 - unit) * 1.01**2


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
    chunks = [slice(start, start + QUERY_ROWS) for start in range(0, len(queries), QUERY_ROWS)]
    shortlists = [_Shortlist(queries[chunk], best_ids[chunk], best[chunk], precision) for chunk in chunks]
    for first_id, vectors in blocks:
        low, high = np.searchsorted(excluded, [first_id, first_id + len(vectors)])
        block = _Block(first_id, vectors, excluded[low:high] - first_id)
        for panel in block.panels(precision):
            for shortlist in shortlists:
                shortlist.add(panel)
        for shortlist in shortlists:
            shortlist.settle(block)
    return best_ids, best


@dataclass(frozen=True)
class _Block:
    first_id: int
    vectors: Float16
    dead: NDArray[np.int64]

    def panels(self, precision: ShortlistPrecision) -> Iterator[_Panel]:
        """Yield the vectors in the precision of the first comparison, padded with zeros to whole groups."""
        import torch

        for start in range(0, len(self.vectors), PANEL_ROWS):
            some = self.vectors[start : start + PANEL_ROWS]
            rows = -(-len(some) // GROUP_ROWS) * GROUP_ROWS
            padded = torch.zeros(rows, some.shape[1], dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
            padded[: len(some)] = torch.from_numpy(np.array(some))  # a copy: PyTorch minds maps that cannot be written
            low, high = np.searchsorted(self.dead, [start, start + len(some)])
            out = np.concatenate([self.dead[low:high] - start, np.arange(len(some), rows)])
            yield _Panel(self, start, padded, torch.from_numpy(out))


@dataclass(frozen=True)
class _Panel:
    """Rows `start`... of a block; `out` are those of its own rows that may not be found."""

    block: _Block
    start: int
    vectors: Tensor
    out: Tensor


class _Shortlist:
    """The pairs of query and vector that may be among the k nearest, by products whose error is bounded.

    With x', y' the rounded factors, |x'.y' - x.y| <= |y' - y| |x'| + |x' - x| |y|. The first term is measured for every
    query; of the vectors it is known that they are rounded to 8 significant bits (u = 2^-8). The product itself is
    rounded to the type as well: rounding is monotonic, so thresholds are rounded down instead.
    """

    def __init__(
        self,
        queries: Float16,
        best_ids: NDArray[np.int64],
        best: NDArray[np.float32],
        precision: ShortlistPrecision,
    ) -> None:
        import torch

        self._exact = queries
        self._best_ids, self._best = best_ids, best  # [B, k], written in place
        wide = torch.from_numpy(np.array(queries)).float()
        types = {"bf16": (torch.bfloat16, torch.int16, 2.0**-8), "fp32": (torch.float32, torch.int32, 0.0)}
        self._type, self._integer, rounding = types[precision]
        self._queries = wide.to(self._type)
        measured = (self._queries.float() - wide).norm(dim=1) * (1 + rounding) + rounding * wide.norm(dim=1)
        self._error = 1.01 * measured + product_error(queries.shape[1]) + 2.0**-22  # the last: of this arithmetic
        self._largest = torch.full(best.shape, -torch.inf, dtype=self._type)  # [B, k] of the groups' maxima
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, columns, scores
        self._waiting = 0

    def add(self, panel: _Panel) -> None:
        """Keep the pairs with a panel's vectors that may matter; none that is among the k nearest is missing."""
        import torch

        scores = self._queries @ panel.vectors.T
        scores[:, panel.out] = -torch.inf
        groups = scores.view(len(scores), -1, GROUP_ROWS)
        # As integers, floats >= 0 keep their order, and all of them are greater than those < 0.
        maxima = groups.view(self._integer).amax(dim=2).view(self._type)
        self._largest = torch.cat([self._largest, maxima], dim=1).topk(self._best.shape[1], dim=1).values
        threshold = self._threshold()[:, None]
        row, group = ((maxima >= threshold) | (threshold <= 0)).nonzero(as_tuple=True)
        for start in range(0, len(row), PAIR_ROWS // GROUP_ROWS):
            piece = slice(start, start + PAIR_ROWS // GROUP_ROWS)
            rows, places = row[piece], group[piece]
            found = groups[rows, places]
            pair, inside = (found >= threshold[rows]).nonzero(as_tuple=True)
            columns = places[pair] * GROUP_ROWS + inside + panel.start
            self._pairs.append((rows[pair], columns, found[pair, inside]))
            self._waiting += len(pair)
            if self._waiting >= PAIR_ROWS:
                self.settle(panel.block)

    def _threshold(self) -> Tensor:
        """Return the score [B] of the first comparison that a pair must reach: what k others certainly exceed."""
        import torch

        reached = torch.maximum(_below(self._largest[:, -1]).float() - self._error, torch.from_numpy(self._best[:, -1]))
        return _below((reached - self._error).to(self._type)).clamp(min=torch.finfo(self._type).min)  # the dead: -inf

    def settle(self, block: _Block) -> None:
        """Compare the pairs that were kept exactly, and put them among the best."""
        import torch

        if not self._pairs:
            return
        rows, columns, scores = (torch.cat(parts) for parts in zip(*self._pairs, strict=True))
        self._pairs, self._waiting = [], 0
        keep = scores >= self._threshold()[rows]
        rows, columns = rows[keep].numpy(), columns[keep].numpy()
        queries, exact = _float64(self._exact), np.empty(len(rows), np.float32)
        for start in range(0, len(rows), EXACT_ROWS):  # in pieces that stay in the processor's cache
            piece = slice(start, start + EXACT_ROWS)
            exact[piece] = _canonical(queries[rows[piece]], _float64(block.vectors[columns[piece]]))
        _merge(self._best_ids, self._best, rows, columns + block.first_id, exact)


def _below(values: Tensor) -> Tensor:
    """Return the next smaller numbers of the same type."""
    import torch

    return torch.nextafter(values, torch.full_like(values, -torch.inf))


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
    """Yield the parts again in blocks of at most `rows` vectors, as `exact_search` wants them."""
    for first_id, vectors in parts:
        for start in range(0, len(vectors), rows):
            yield first_id + start, vectors[start : start + rows]
