"""The loops of exact search that would be many passes in numpy or PyTorch, compiled by numba.

Vectors in float16 come as their bits, uint16: numba has no such numbers. All arrays are
C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import boolean, float32, float64, int8, int32, int64, uint16, void
from numba.extending import intrinsic

from rdm.database.search.scores import DEAD

SUMS = 32  # of products that are added at once
_ANY_ORDER = {"reassoc", "contract", "nsz"}  # of sums: for bounds, which allow for it


def _given(dtype: Any, ndim: int) -> Any:
    return numba.types.Array(dtype, ndim, "C", readonly=True)  # takes writable ones too


def _compiled(
    *signatures: Any, fastmath: set[str] | bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function; keep the result for later processes where a folder can be written."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(list(signatures), nogil=True, fastmath=fastmath, cache=True)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            # Neither the package nor the user's cache folder can be written: compile for this
            # process.
            return numba.njit(list(signatures), nogil=True, fastmath=fastmath)(function)

    return compiled


def _widened(_context: Any, bits: Any) -> Any:
    """Tell numba how to widen the bits of a float16 to float64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.DoubleType())

    return float64(uint16), generate


_float64: Any = intrinsic(_widened)


@_compiled(float32(_given(float64, 1), _given(uint16, 1), float64[::1]))
def _similarity(query: np.ndarray, vector: np.ndarray, sums: np.ndarray) -> np.float32:
    """Return the canonical similarity: the float64 sum of the exact products, rounded.

    Product d goes to sum d mod 32, and the sums are folded in halves, so that processors of any
    width add in one order. `sums` is scratch [32].
    """
    # A product of two float16 is exact in float64: 22 of 53 bits.
    sums[:] = 0
    whole = len(query) - len(query) % SUMS
    for start in range(0, whole, SUMS):
        for lane in range(SUMS):
            sums[lane] += query[start + lane] * _float64(vector[start + lane])

    for d in range(whole, len(query)):
        sums[d - whole] += query[d] * _float64(vector[d])

    # Fold 32 sums to 16, 8, 4, 2, 1.
    half = SUMS // 2
    while half:
        for lane in range(half):
            sums[lane] += sums[lane + half]
        half //= 2

    return np.float32(sums[0])


@_compiled(void(_given(float64, 2), _given(uint16, 3), float32[:, ::1]))
def similarities(queries: np.ndarray, candidates: np.ndarray, out: np.ndarray) -> None:
    """Write the canonical similarities [B, C] of queries [B, dim] with candidates [B, C, dim]."""
    sums = np.empty(SUMS)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            out[row, column] = _similarity(queries[row], candidates[row, column], sums)


@_compiled(
    void(_given(uint16, 2), _given(float32, 1), int64, int8[:, ::1], float32[:, ::1]),
    fastmath=_ANY_ORDER,
)
def round_groups(
    vectors: np.ndarray, center: np.ndarray, group: int, values: np.ndarray, of_groups: np.ndarray
) -> None:
    """Round vectors [N, dim] less their center to whole numbers, `group` vectors of one scale.

    `of_groups` [G, 3] gets what equation (1) of `shortlist` needs: scale, |y - y'| and |y|.

    Norms are summed in float32: their relative errors are below dim 2^-23.
    """
    count, dim = vectors.shape
    some = np.empty((group, dim), np.float32)
    bits = some.view(np.int32)
    for start in range(0, count, group):
        # Subtract the center; find the group's greatest number and greatest norm.
        size = min(group, count - start)
        greatest, squares, rests = np.int32(0), np.float32(0), np.float32(0)
        for row in range(size):
            square = np.float32(0)
            for d in range(dim):
                some[row, d] = np.float32(_float64(vectors[start + row, d])) - center[d]
                square += some[row, d] * some[row, d]
                # Floats that are not negative have bits in the order of their values, and
                # integers are compared more quickly.
                greatest = max(greatest, bits[row, d] & np.int32(0x7FFFFFFF))
            squares = max(squares, square)

        # The greatest number becomes 127; a group of zeros may have any scale.
        scale = np.array([greatest], np.int32).view(np.float32)[0] / np.float32(127)
        if greatest == 0:
            scale = np.float32(1)
        inverse = np.float32(1) / scale

        # Round, and measure the rest that rounding leaves.
        for row in range(size):
            rest = np.float32(0)
            for d in range(dim):
                scaled = some[row, d] * inverse
                whole = np.rint(scaled)
                values[start + row, d] = np.int8(whole)
                rest += (scaled - whole) * (scaled - whole)
            rests = max(rests, rest)

        terms = of_groups[start // group]
        terms[0], terms[1], terms[2] = scale, np.sqrt(rests) * scale, np.sqrt(squares)


@_compiled(boolean(float32, int64, float32, int64))
def _before(similarity: float, number: int, other: float, other_number: int) -> bool:
    """Return whether the first of two results (similarity, id) comes first; id -1 is none."""
    return similarity > other or (
        similarity == other and (number < other_number or other_number < 0)
    )


@_compiled(void(float32, int64, float32[::1], int64[::1]))
def _insert(similarity: float, number: int, best: np.ndarray, ids: np.ndarray) -> None:
    """Insert a result among the best [k], in order; the last drops out."""
    place = len(best) - 1
    while place > 0 and _before(similarity, number, best[place - 1], ids[place - 1]):
        best[place], ids[place] = best[place - 1], ids[place - 1]
        place -= 1
    best[place], ids[place] = similarity, number


@_compiled(numba.types.UniTuple(float64, 2)(_given(float32, 1), _given(float32, 1), float64))
def _bound(of_query: np.ndarray, of_group: np.ndarray, slack: float) -> tuple[Any, Any]:
    """Return factor and summand that turn a score into an upper bound of a pair's similarity.

    These are s_q s_y, and q.m + |q'||y - y'| + |q - q'||y| + slack of equation (1).
    """
    scale = np.float64(of_query[0]) * np.float64(of_group[0])
    error = np.float64(of_query[1]) * of_group[1] + np.float64(of_query[2]) * of_group[2]
    return scale, of_query[3] + (error + slack)


_CONSIDER = [
    void(
        _given(kind, 2), _given(kind, 2), _given(float32, 2), _given(float32, 2), float64,
        _given(float32, 1), _given(float64, 2), _given(uint16, 2), int64, int64[:, ::1],
        float32[:, ::1],
    )
    for kind in (int32, float32)
]  # fmt: skip


@_compiled(*_CONSIDER)
def consider(  # noqa: PLR0913 - compiled code takes arrays, not objects
    scores: np.ndarray,
    greatest: np.ndarray,
    of_queries: np.ndarray,
    of_groups: np.ndarray,
    slack: float,
    floor: np.ndarray,
    queries: np.ndarray,
    vectors: np.ndarray,
    first_id: int,
    ids: np.ndarray,
    best: np.ndarray,
) -> None:
    """Compare exactly the pairs that may be among the k nearest, and keep those that are.

    Args:
        scores: int32 or float32 [B, G * group]; `DEAD` for a vector that may not be found.
        greatest: [B, G], of each group.
        of_queries: float32 [B, 4]: s_q, |q'|, |q - q'|, q.m of equation (1) in `shortlist`.
        of_groups: float32 [G, 3]: s_y, and the greatest |y - y'| and |y|.
        slack: a bound on all further errors.
        floor: float32 [B]: at least k vectors are certainly this near.
        queries: float64 [B, dim].
        vectors: the bits of float16 [N, dim], N <= G * group.
        first_id: the id of the first vector; the others follow.
        ids: int64 [B, k], changed in place; -1 where nothing was found yet.
        best: float32 [B, k], their similarities, by (similarity, id), changed in place.
    """
    sums = np.empty(SUMS)
    group, last = scores.shape[1] // greatest.shape[1], best.shape[1] - 1

    # `reached` is what a similarity must exceed, or equal, to be among the k best.
    for row in range(scores.shape[0]):
        reached = np.float64(max(best[row, last], floor[row]))

        # A group whose best score cannot reach it is skipped whole: most are.
        for number in range(greatest.shape[1]):
            scale, above = _bound(of_queries[row], of_groups[number], slack)
            if greatest[row, number] * scale + above < reached:
                continue

            # The same condition on a score, so that each column takes one comparison.
            needed = np.float32((reached - above) / scale)
            for column in range(number * group, min((number + 1) * group, vectors.shape[0])):
                if np.float32(scores[row, column]) < needed or scores[row, column] == DEAD:
                    continue

                # This pair may be near enough: only now the exact sum is computed.
                similarity = _similarity(queries[row], vectors[column], sums)
                if _before(similarity, first_id + column, best[row, last], ids[row, last]):
                    _insert(similarity, first_id + column, best[row], ids[row])
                    reached = np.float64(max(best[row, last], floor[row]))
                    needed = np.float32((reached - above) / scale)
