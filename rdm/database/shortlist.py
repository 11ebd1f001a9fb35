"""The pairs of query and vector that may be among the k nearest, by products in 8 bits whose error is bounded.

With y = x - m for a center m, and whole numbers i of 8 bits in y' = s_y i_y and q' = s_q i_q, Cauchy and Schwarz give

    |q.x - (q.m + s_q s_y i_q.i_y)| = |q'.(y - y') + (q - q').y| <= |q'| |y - y'| + |q - q'| |y|.             (1)

All four norms are measured. Products of whole numbers are exact, so nothing is added but the rounding of these norms
and of (1) itself, see `SLACK`. Where the processor is not quick at whole numbers the products are in float32: there
y' = x, q' = q, m = 0, and the error is that of a sum in any order (`product_error`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Float16 = NDArray[np.float16]
ShortlistPrecision: TypeAlias = Literal["int8", "fp32"]

PANEL_ROWS = 4096  # vectors compared at once: a panel's scores stay in the processor's cache
GROUP_ROWS = 64  # vectors of one scale, whose greatest score is looked at before their own
PIECE_ROWS = 512  # vectors quantized, and pairs compared in float32, at once: they stay in the processor's cache
PIECE_GROUPS = 2048  # groups looked into at once
WAITING = 256  # pairs of each query that wait before the threshold is raised
SLACK = 2.0**-19  # above the error of a dozen operations in float32 with numbers below 2
_DEAD = -(2**31)  # the product of a vector that may not be found
_FAR = 2**30  # no true product is as great; none is needed below its negative


def product_error(dim: int) -> float:
    """Return a bound on |fl(x.y) - x.y|, float32, of vectors [dim] of norm <= 1.01, summed in any order.

    n u / (1 - n u) |x|.|y| with u = 2^-24 (Higham 2002, eq. 3.5).
    """
    unit = dim * 2.0**-24
    return unit / (1 - unit) * 1.01**2


class Rounded(NamedTuple):
    """Vectors in the precision of the first comparison, in groups of one scale."""

    values: Tensor  # int8 or float32 [N, dim]
    scales: Tensor  # float32 [G]: a group's vectors are values * scale
    residuals: Tensor  # float32 [G]: the greatest distance of a group's vector from the true one
    norms: Tensor  # float32 [G]: the greatest norm of a group's true vector


def rounded(vectors: Tensor, group: int, precision: ShortlistPrecision) -> Rounded:
    """Round float32 vectors [N, dim], N a multiple of `group`; what is measured is never less than the truth."""
    import torch

    norms = _norms(vectors).view(-1, group).amax(dim=1)
    if precision == "fp32":
        return Rounded(vectors, torch.ones(len(norms)), torch.zeros(len(norms)), norms)
    rows = vectors.view(len(norms), -1)
    greatest = rows.abs().amax(dim=1)
    scales = (greatest / 127).where(greatest > 0, 1.0)
    scaled = rows * (1 / scales)[:, None]
    whole = scaled.round()
    rest = _norms(scaled.sub_(whole).view(vectors.shape)).view(-1, group).amax(dim=1)
    # The last term: the quotients err by three units of 2^-24, and so do differences from a center.
    return Rounded(whole.to(torch.int8).view(vectors.shape), scales, rest * scales + 2.0**-21 * norms, norms)


def _norms(rows: Tensor) -> Tensor:
    """Return norms [N] that are not below the true ones, whatever the order of summation."""
    return rows.norm(dim=1) * (1 + rows.shape[1] * 2.0**-23)


def _wide(vectors: Float16) -> Tensor:
    import torch

    return torch.from_numpy(np.array(vectors)).float()  # a copy: PyTorch minds maps that cannot be written


@dataclass(frozen=True)
class Panel:
    """Consecutive vectors of a block less its center, padded with zeros to whole groups."""

    start: int  # the row of the block where it begins
    rounded: Rounded
    center: Tensor  # float32 [dim]
    out: Tensor  # int64: the rows of the panel that may not be found


def panels(
    vectors: Float16, dead: NDArray[np.int64], precision: ShortlistPrecision
) -> Iterator[Callable[[], Panel]]:
    """Yield what makes each panel of a block [N, dim]; `dead` are its sorted rows that may not be found."""
    import torch

    center = torch.zeros(vectors.shape[1])
    if precision == "int8":
        center = _wide(vectors[:: -(-len(vectors) // PANEL_ROWS)]).mean(dim=0)
    for start in range(0, len(vectors), PANEL_ROWS):
        some = vectors[start : start + PANEL_ROWS]
        low, high = np.searchsorted(dead, [start, start + len(some)])
        yield partial(_panel, start, some, dead[low:high] - start, center, precision)


def _panel(
    start: int, vectors: Float16, dead: NDArray[np.int64], center: Tensor, precision: ShortlistPrecision
) -> Panel:
    import torch

    pieces = [
        rounded(_padded(_wide(vectors[row : row + PIECE_ROWS]) - center), GROUP_ROWS, precision)
        for row in range(0, len(vectors), PIECE_ROWS)
    ]
    whole = Rounded(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
    out = np.concatenate([dead, np.arange(len(vectors), len(whole.values))])
    return Panel(start, whole, center, torch.from_numpy(out))


def _padded(vectors: Tensor) -> Tensor:
    import torch

    missing = -len(vectors) % GROUP_ROWS
    return torch.cat([vectors, torch.zeros(missing, vectors.shape[1])]) if missing else vectors


class Pairs(NamedTuple):
    """Pairs of a query and a vector of one block."""

    rows: Tensor  # int64 [N], of queries
    columns: Tensor  # int64 [N], of the block
    upper: Tensor  # float32 [N]: the similarity is not greater

    def at(self, chosen: Tensor) -> Pairs:
        """Return the pairs at positions [M]."""
        return Pairs(*(values.index_select(0, chosen) for values in self))


class Shortlist:
    """The pairs of some queries [B, dim] with a block that wait for the exact comparison.

    `reached` [B] is what a pair's similarity must reach, because k others are certainly as near. A query's first one
    follows from products; later ones from its best pairs, compared in float32. None of the k nearest is ever missing.
    """

    def __init__(self, queries: Float16, k: int, precision: ShortlistPrecision) -> None:
        import torch

        self._queries, self._k = _wide(queries), k
        self._rounded = rounded(self._queries, 1, precision)
        self._sizes = _norms(self._rounded.values.float()) * self._rounded.scales
        self._error = product_error(queries.shape[1])
        self._slack = SLACK + (self._error if precision == "fp32" else 0)
        self._pairs: list[Pairs] = []
        self._waiting = 0
        self.reached = torch.full((len(queries),), torch.finfo(torch.float32).min)

    def add(self, panel: Panel, block: Float16, best: NDArray[np.float32]) -> None:
        """Keep the pairs with a panel of a block that may matter; `best` [B, k] are similarities in earlier blocks."""
        import torch

        groups = self._products(panel).view(len(self.reached), -1, GROUP_ROWS)
        vectors, queries = panel.rounded, self._rounded
        scales = torch.outer(queries.scales, vectors.scales)
        errors = torch.outer(self._sizes, vectors.residuals) + torch.outer(queries.residuals, vectors.norms)
        errors += self._slack
        shift = (self._queries.double() @ panel.center.double()).float()[:, None]
        greatest = groups.amax(dim=2)
        if not self._waiting:
            lower = (greatest * scales + (shift - errors)).where(greatest > _DEAD, -torch.inf)
            self._reach(lower)
        errors += shift
        needed = ((self.reached[:, None] - errors) / scales).clamp_(-_FAR, _FAR)
        if not greatest.is_floating_point():
            needed = needed.floor_().to(greatest.dtype)
        self._look_into(groups, _where(greatest >= needed), needed, scales, errors, panel.start)
        if self._waiting > WAITING * len(self.reached):
            self.raise_threshold(block, best)

    def _products(self, panel: Panel) -> Tensor:
        import torch

        values = panel.rounded.values.T
        products = torch.ops.aten._int_mm if values.dtype == torch.int8 else torch.mm
        scores = products(self._rounded.values, values)
        scores[:, panel.out] = _DEAD
        return scores

    def _look_into(
        self, groups: Tensor, chosen: Tensor, needed: Tensor, scales: Tensor, errors: Tensor, start: int
    ) -> None:
        """Keep the pairs of the chosen groups (positions in [B * G]) whose scores reach what their group needs."""
        count = groups.shape[1]
        scores, needed, scales, errors = groups.view(-1, GROUP_ROWS), needed.view(-1), scales.view(-1), errors.view(-1)
        for some in chosen.split(PIECE_GROUPS):
            found = scores.index_select(0, some)
            places = _where(found >= needed.index_select(0, some)[:, None])
            owners = some.index_select(0, places // GROUP_ROWS)
            upper = found.view(-1).index_select(0, places) * scales.index_select(0, owners)
            upper += errors.index_select(0, owners)
            columns = owners % count * GROUP_ROWS + places % GROUP_ROWS + start
            self._pairs.append(Pairs(owners // count, columns, upper))
            self._waiting += len(places)

    def raise_threshold(self, block: Float16, best: NDArray[np.float32]) -> None:
        """Compare each query's best pairs in float32, and keep the pairs that reach the threshold that follows."""
        import torch

        pairs = self._sorted()
        rows, places = _greatest(pairs, len(self.reached), self._k)
        near = self._compared(pairs.at(places), block)
        lower = torch.full((len(self.reached) * self._k,), -torch.inf)
        lower[rows] = near - self._error
        self._reach(torch.cat([torch.from_numpy(best), lower.view(-1, self._k)], dim=1))
        pairs.upper[places] = torch.minimum(pairs.upper[places], near + self._error)
        self._pairs = [self._reaching(pairs)]
        self._waiting = len(self._pairs[0].rows)

    def taken(self, block: Float16, best: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of the pairs that float32 cannot rule out; nothing waits any longer."""
        if not self._pairs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.raise_threshold(block, best)
        (pairs,) = self._pairs
        self._pairs, self._waiting = [], 0
        pairs = self._reaching(pairs._replace(upper=self._compared(pairs, block) + self._error))
        return pairs.rows.numpy(), pairs.columns.numpy()

    def _reach(self, lower: Tensor) -> None:
        """Raise the threshold to the k-th of bounds [B, N] below the similarities of different vectors."""
        import torch

        if lower.shape[1] >= self._k:
            self.reached = torch.maximum(self.reached, lower.topk(self._k, dim=1).values[:, -1])

    def _reaching(self, pairs: Pairs) -> Pairs:
        return pairs.at(_where(pairs.upper >= self.reached.index_select(0, pairs.rows)))

    def _sorted(self) -> Pairs:
        """Return the waiting pairs that reach the threshold, by query."""
        import torch

        pairs = self._reaching(Pairs(*(torch.cat(parts) for parts in zip(*self._pairs, strict=True))))
        order = np.argsort(pairs.rows.numpy().astype(np.int16), kind="stable")  # numpy counts numbers of 16 bits
        return pairs.at(torch.from_numpy(order))

    def _compared(self, pairs: Pairs, block: Float16) -> Tensor:
        """Return the pairs' similarities [N] in float32, each wrong by `product_error` at most."""
        import torch

        return torch.cat(
            [
                torch.linalg.vecdot(self._queries.index_select(0, rows), _wide(np.take(block, columns, axis=0)))
                for rows, columns in zip(
                    pairs.rows.split(PIECE_ROWS), pairs.columns.split(PIECE_ROWS), strict=True
                )
            ]
        )


def _where(mask: Tensor) -> Tensor:
    """Return the flat positions where a mask is true: numpy is ten times as fast as PyTorch where few are."""
    import torch

    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _greatest(pairs: Pairs, count: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the k pairs of the greatest `upper` of each of `count` queries, of pairs sorted by query: a flat place in
    [count, k] for each, and its position.
    """
    import torch

    sizes = pairs.rows.bincount(minlength=count)
    starts = sizes.cumsum(0) - sizes
    width = max(int(sizes.max()), k)
    places = torch.arange(len(pairs.rows)) - starts.index_select(0, pairs.rows)
    dense = torch.full((count * width,), -torch.inf)
    dense[pairs.rows * width + places] = pairs.upper
    values, columns = dense.view(count, width).topk(k, dim=1)
    there = _where(values > -torch.inf)
    return there, (starts[:, None] + columns).view(-1).index_select(0, there)
