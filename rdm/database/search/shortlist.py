"""The pairs that may be among the k nearest, by products in 8 bits whose error is bounded.

With y = x - m for a center m, and whole numbers i of 8 bits in y' = s_y i_y and q' = s_q i_q,
Cauchy and Schwarz give

    |q.x - (q.m + s_q s_y i_q.i_y)| = |q'.(y - y') + (q - q').y|
                                    <= |q'| |y - y'| + |q - q'| |y|.                   (1)

All four norms are measured. Products of whole numbers are exact, so nothing is added but the
rounding of these norms and of (1) itself, see `SLACK`. Where the processor is not quick at whole
numbers the products are in float32: there y' = x, q' = q, m = 0, and the error is that of a sum in
any order (`product_error`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rdm.database.search.scores import DEAD

if TYPE_CHECKING:
    from torch import Tensor

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]
ShortlistPrecision: TypeAlias = Literal["int8", "fp32"]

PANEL_ROWS = 4096  # vectors compared at once: a panel's scores stay in the processor's cache
GROUP_ROWS = 64  # vectors of one scale, whose greatest score is looked at before their own


SLACK = 2.0**-19  # above the error of a dozen operations in float32 with numbers below 2


def product_error(dim: int) -> float:
    """Return a bound on |fl(x.y) - x.y| in float32, of vectors [dim] of norm <= 1.01, in any order.

    n u / (1 - n u) |x|.|y| with u = 2^-24 (Higham 2002, eq. 3.5).
    """
    unit = dim * 2.0**-24
    return unit / (1 - unit) * 1.01**2


class Rounded(NamedTuple):
    """Vectors in the precision of the first comparison, in groups of one scale."""

    values: Tensor  # int8 or float32 [N, dim]
    # [G, 3]: scale, greatest distance of values * scale from the true vector, its greatest norm
    of_groups: Float32


def rounded(
    vectors: Float16, center: Float32, group: int, precision: ShortlistPrecision
) -> Rounded:
    """Round vectors [N, dim] less their center; no measured norm is less than the true one.

    The values are padded with zeros to whole groups. In float32 there is no center.
    """
    import torch

    from rdm.database.search.kernels import round_groups

    count, dim = vectors.shape
    groups = -(-count // group)

    # Without whole numbers the values are the vectors themselves: scale 1, no rounding error.
    if precision == "fp32":
        values = torch.zeros(groups * group, dim)
        # A copy: PyTorch warns of arrays that cannot be written, such as memory maps.
        values[:count] = torch.from_numpy(np.array(vectors))
        return Rounded(values, np.tile(np.array([1, 0, 0], np.float32), (groups, 1)))

    values = torch.zeros(groups * group, dim, dtype=torch.int8)
    of_groups = np.empty((groups, 3), np.float32)
    round_groups(bits_of(vectors), center, group, values.numpy(), of_groups)

    # Never less than the truth, in whatever order the kernel summed the norms.
    of_groups[:, 1:] *= 1 + dim * 2.0**-23
    # Quotients err by three units of 2^-24, and so do differences from a center.
    of_groups[:, 1] += 2.0**-21 * of_groups[:, 2]
    return Rounded(values, of_groups)


def bits_of(vectors: Float16) -> NDArray[np.uint16]:
    """Return float16 vectors as their bits, which the compiled loops take."""
    return np.ascontiguousarray(vectors).view(np.uint16)


@dataclass(frozen=True)
class Panel:
    """Consecutive vectors of a block."""

    first_id: int
    vectors: NDArray[np.uint16]  # [N, dim]: the bits of float16
    rounded: Rounded  # less the center
    center: Tensor  # float32 [dim]
    dead: Tensor  # int64: rows that may not be found


def panels(
    first_id: int, vectors: Float16, dead: NDArray[np.int64], precision: ShortlistPrecision
) -> Iterator[Callable[[], Panel]]:
    """Yield functions that make the panels of a block [N, dim]; `dead` has its sorted dead rows."""
    import torch

    # The mean of a sample is the center: embeddings lie on one side of the sphere, and less their
    # mean they are shorter, so rounding errs less.
    center = torch.zeros(vectors.shape[1])
    if precision == "int8":
        sample = np.array(vectors[:: -(-len(vectors) // PANEL_ROWS)])
        center = torch.from_numpy(sample).float().mean(dim=0)

    for start in range(0, len(vectors), PANEL_ROWS):
        some = vectors[start : start + PANEL_ROWS]
        low, high = np.searchsorted(dead, [start, start + len(some)])
        yield partial(_panel, first_id + start, some, dead[low:high] - start, center, precision)


def _panel(
    first_id: int,
    vectors: Float16,
    dead: NDArray[np.int64],
    center: Tensor,
    precision: ShortlistPrecision,
) -> Panel:
    """Round one panel: the slow part, which a thread does ahead."""
    import torch

    whole = rounded(vectors, center.numpy(), GROUP_ROWS, precision)
    return Panel(first_id, bits_of(vectors), whole, center, torch.from_numpy(dead))


class Nearest:
    """The k nearest of some queries [B, dim] among the panels so far.

    `ids` int64 [B, k] and `best` float32 [B, k] are filled in place.
    """

    def __init__(
        self, queries: Float16, ids: NDArray[np.int64], best: Float32, precision: ShortlistPrecision
    ) -> None:
        import torch

        # `of_groups` of single queries: s_q, |q - q'| and |q|.
        self._ids, self._best = ids, best
        self._queries = torch.from_numpy(np.array(queries)).double()
        self._rounded = rounded(queries, np.zeros(queries.shape[1], np.float32), 1, precision)

        # |q'|, never below the truth: a float64 sum of exact products, and room for its rounding.
        scales = self._rounded.of_groups[:, 0] * (1 + 2.0**-20)
        self._sizes = self._rounded.values.double().norm(dim=1).numpy() * scales

        self._center: Tensor | None = None
        self._slack = SLACK + (product_error(queries.shape[1]) if precision == "fp32" else 0)
        self._floor = np.full(len(queries), -np.inf, np.float32)

    def add(self, panel: Panel) -> None:
        """Take the panel's vectors into account."""
        from rdm.database.search.kernels import consider

        # Scores of all pairs, and the greatest of each group of 64 vectors.
        scores = self._scores(panel)
        greatest = scores.view(len(scores), -1, GROUP_ROWS).amax(dim=2).numpy()
        of_queries, of_groups = self._of_queries(panel.center), panel.rounded.of_groups

        # Nothing was found yet: a first floor spares exact comparisons of the first panel.
        if self._ids[0, 0] < 0:
            self._raise_floor(greatest, of_queries, of_groups)

        # Exact comparison of what may be near enough.
        consider(
            scores.numpy(), greatest, of_queries, of_groups, self._slack, self._floor,
            self._queries.numpy(), panel.vectors, panel.first_id, self._ids, self._best,
        )  # fmt: skip

    def _of_queries(self, center: Tensor) -> Float32:
        """Return s_q, |q'|, |q - q'| and q.m [B, 4]; all panels of a block have one center m."""
        import torch

        if self._center is not center:
            self._center, queries = center, self._rounded.of_groups
            shifts = torch.mv(self._queries, center.double()).numpy()
            self._terms = np.stack(
                [queries[:, 0], self._sizes, queries[:, 1], shifts], axis=1, dtype=np.float32
            )
        return self._terms

    def _scores(self, panel: Panel) -> Tensor:
        """Return the products [B, N] of the rounded numbers; `DEAD` of what may not be found."""
        import torch

        values = panel.rounded.values.T
        product = torch.ops.aten._int_mm if values.dtype == torch.int8 else torch.mm
        scores = product(self._rounded.values, values)

        # Deleted vectors, and the padding of the last panel.
        if len(panel.dead):
            scores[:, panel.dead] = DEAD
        if len(panel.vectors) < scores.shape[1]:
            scores[:, len(panel.vectors) :] = DEAD
        return scores

    def _raise_floor(
        self, greatest: NDArray[np.number], of_queries: Float32, of_groups: Float32
    ) -> None:
        """Raise the floor to the k-th greatest lower bound of the groups' best vectors.

        Each group's best is another vector, so k of them are certainly at least this near.
        """
        k = self._ids.shape[1]
        if greatest.shape[1] < k:
            return

        # Equation (1) from below: similarity >= score - error.
        errors = (
            np.outer(of_queries[:, 1], of_groups[:, 1])
            + np.outer(of_queries[:, 2], of_groups[:, 2])
            + self._slack
        )
        lower = greatest * np.outer(of_queries[:, 0], of_groups[:, 0]) + of_queries[:, 3:] - errors

        # The k-th greatest of each row; a group without living vectors bounds nothing.
        lower = np.where(greatest == DEAD, -np.inf, lower)
        lower.partition(-k, axis=1)
        np.maximum(self._floor, lower[:, -k], out=self._floor, casting="same_kind")
