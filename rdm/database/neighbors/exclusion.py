"""Exclude patches from a crop's neighbors: those of its own photograph, and near-duplicates.

The neighbors of a crop are then the k nearest of the other patches. The excluded ones that rank
before the last of these are recorded: without the exclusion they would have been in the way.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.errors import DatabaseError

Neighbors: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids [N, k] and similarities [N, k], best first, ties by smaller id; (-1, -inf) where none is."""
Search: TypeAlias = Callable[[NDArray[np.float16], int], Neighbors]
"""Given queries [N, dim] and k, their k nearest; fewer columns, or -1, where no more exist."""

_EXTRA = 8  # looked up beyond k at first: few crops have more patches excluded


class Exclude(Protocol):
    """The rule that keeps candidates from being neighbors."""

    def __call__(self, rows: NDArray[np.intp], candidates: Neighbors) -> NDArray[np.bool_]:
        """Return bool [N, m] for the candidates [N, m] of the crops with these row numbers [N]."""
        ...


@dataclass(frozen=True, eq=False)
class Lookup:
    """The nearest allowed patches of crops [N, k], and the excluded ones before the last [N, m]."""

    neighbors: Neighbors
    excluded: Neighbors

    def equals(self, other: Lookup) -> bool:
        """Return whether both found the same, bit for bit."""
        mine, others = (*self.neighbors, *self.excluded), (*other.neighbors, *other.excluded)
        return all(np.array_equal(one, two) for one, two in zip(mine, others, strict=True))


def search_allowed(
    search: Search, queries: NDArray[np.float16], k: int, exclude: Exclude | None
) -> Lookup:
    """Return the k nearest allowed patches, and the excluded ones that rank before the last.

    Args:
        search: looks up any number of nearest patches.
        queries: unit vectors [N, dim].
        k: how many; where fewer are allowed, the rest has id -1, and every excluded patch is
            recorded.
        exclude: the rule; None excludes nothing.
    """
    if exclude is None:
        return Lookup(search(queries, k), no_neighbors(len(queries), 0))

    # Look up a few more than k; rows that still lack neighbors are looked up twice as wide.
    ids, similarities = no_neighbors(len(queries), k)
    excluded, rows, width = no_neighbors(len(queries), 0), np.arange(len(queries)), k + _EXTRA
    while len(rows):
        found = search(queries[rows], width)
        part = split_ranking(found, exclude(rows, found), k)
        ids[rows], similarities[rows] = part.neighbors
        excluded = with_rows(excluded, rows, part.excluded)
        # A search that has nothing more to give cannot fill the row: it stays short.
        exhausted = (found[0][:, -1] < 0) | (found[0].shape[1] < width)
        rows, width = rows[(part.neighbors[0][:, -1] < 0) & ~exhausted], 2 * width

    return Lookup((ids, similarities), trimmed(excluded))


def split_ranking(candidates: Neighbors, excluded: NDArray[np.bool_], k: int) -> Lookup:
    """Split ranked candidates [N, m] into the first k allowed, and the excluded before the last.

    Args:
        candidates: ids and similarities, best first.
        excluded: bool [N, m].
        k: how many allowed ones are wanted.
    """
    there = candidates[0] >= 0
    kept = there & ~excluded
    place = kept.cumsum(axis=1)  # how many are allowed up to here
    allowed = _picked(candidates, kept & (place <= k), k)
    before = there & excluded & (place < k)
    return Lookup(allowed, _picked(candidates, before, int(before.sum(axis=1).max(initial=0))))


def no_neighbors(count: int, width: int) -> Neighbors:
    """Return [count, width] empty places."""
    return np.full((count, width), -1, np.int64), np.full((count, width), -np.inf, np.float32)


def with_rows(neighbors: Neighbors, rows: NDArray[np.intp], found: Neighbors) -> Neighbors:
    """Replace some rows of neighbors [N, m] by those found [len(rows), m'], as wide as needed."""
    width = max(neighbors[0].shape[1], found[0].shape[1])
    result = no_neighbors(len(neighbors[0]), width)
    for padded, before, values, empty in zip(result, neighbors, found, (-1, -np.inf), strict=True):
        padded[:, : before.shape[1]] = before
        padded[rows] = empty
        padded[rows, : values.shape[1]] = values
    return result


def trimmed(neighbors: Neighbors) -> Neighbors:
    """Return neighbors [N, m] without the last columns that no row uses."""
    width = int((neighbors[0] >= 0).sum(axis=1).max(initial=0))
    return neighbors[0][:, :width], neighbors[1][:, :width]


def require_full(keys: Sequence[str], lookup: Lookup, where: str) -> None:
    """Raise DatabaseError where a crop has fewer than k neighbors left."""
    short = np.flatnonzero((lookup.neighbors[0] < 0).any(axis=1))
    if len(short):
        left = int((lookup.neighbors[0][short[0]] >= 0).sum())
        raise DatabaseError(
            f"so many patches are excluded that {len(short)} crops lack neighbors; "
            f"{keys[short[0]]!r} has {left}",
            where=where,
            fix="look the query set up again with a higher exclude_above, or a smaller k_stored",
        )


def variable_lists(neighbors: Neighbors) -> tuple[pa.Array, pa.Array]:
    """Return padded ids and similarities [N, m] as lists without the padding."""
    there = neighbors[0] >= 0
    offsets = pa.array(np.concatenate([[0], there.sum(axis=1).cumsum()]), pa.int32())
    ids, similarities = (
        pa.ListArray.from_arrays(offsets, pa.array(values[there])) for values in neighbors
    )
    return ids, similarities


def padded_lists(ids: pa.ChunkedArray, similarities: pa.ChunkedArray) -> Neighbors:
    """Return lists as padded ids and similarities [N, m]."""
    sizes = pc.list_value_length(ids).to_numpy()
    result = no_neighbors(len(sizes), int(sizes.max(initial=0)))
    there = np.arange(result[0].shape[1]) < sizes[:, None]
    result[0][there], result[1][there] = (
        pc.list_flatten(ids).to_numpy(),
        pc.list_flatten(similarities).to_numpy(),
    )
    return result


def _picked(candidates: Neighbors, chosen: NDArray[np.bool_], width: int) -> Neighbors:
    """Return the chosen of [N, m], at most `width` in a row, moved to the left."""
    result = no_neighbors(len(chosen), width)
    # Row by row, both masks have equally many places, so assignment keeps the order.
    there = np.arange(width) < chosen.sum(axis=1)[:, None]
    for padded, values in zip(result, candidates, strict=True):
        padded[there] = values[chosen]
    return result
