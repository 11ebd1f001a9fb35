"""Exact repair of stored neighbors after patches were added and deleted, at the cost of what changed.

Top-k over (D - gone) + added is the merge of the stored top-k, without the gone, with the top-k over the added. A
merged row is known to be complete where its k-th neighbor ranks no later than the last stored one did: everything that
was never stored ranks after that. The other rows are looked up again, against every vector.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rdm.database.parts import EmbeddingParts, since
from rdm.database.search import blocks_of, exact_search

Neighbors: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids [N, k] and similarities [N, k], best first, ties by smaller id; id -1 and similarity -inf where there is none."""


def merge_neighbors(
    stored: Neighbors, added: Neighbors, dead: NDArray[np.int64]
) -> tuple[Neighbors, NDArray[np.bool_]]:
    """Merge the stored nearest [N, k] with the nearest of what was added [N, m], without the dead.

    Args:
        stored: the k nearest before the change; every slot is taken.
        added: the nearest among the added patches: k of them, or all where there are fewer.
        dead: ids that may not be found any more.

    Returns:
        The merged neighbors [N, k], and bool [N]: whether the row is sure to be the k nearest after the change.
    """
    k = stored[0].shape[1]
    alive = np.isin(stored[0], dead, invert=True)
    ids = np.concatenate([np.where(alive, stored[0], -1), added[0]], axis=1)
    similarities = np.concatenate([np.where(alive, stored[1], np.float32(-np.inf)), added[1]], axis=1)
    order = np.lexsort((ids, -similarities), axis=-1)[:, :k]
    ids, similarities = np.take_along_axis(ids, order, 1), np.take_along_axis(similarities, order, 1)
    last, least = ids[:, -1], similarities[:, -1]
    tied = (least == stored[1][:, -1]) & (last <= stored[0][:, -1])
    return (ids, similarities), (least > stored[1][:, -1]) | tied


def repair_neighbors(
    queries: NDArray[np.float16],
    stored: Neighbors,
    parts: EmbeddingParts,
    first_added: int,
    dead: NDArray[np.int64],
) -> tuple[Neighbors, int]:
    """Return the k nearest living patches after a change, and how many rows had to be looked up again.

    The result equals that of a new lookup of every row bit for bit.

    Args:
        queries: float16 [N, dim] unit vectors, those that the stored neighbors were looked up with.
        stored: ids and similarities [N, k] before the change.
        parts: all embeddings, the added ones in parts of their own at the end.
        first_added: the first patch id of what was added; the next free one where nothing was.
        dead: sorted ids of all deleted patches.
    """
    k, fresh = stored[0].shape[1], since(parts, first_added)
    added = exact_search(queries, blocks_of(fresh), k, excluded=dead)
    (ids, similarities), sure = merge_neighbors(stored, added, dead)
    rows = np.flatnonzero(~sure)
    if len(rows):
        ids[rows], similarities[rows] = exact_search(queries[rows], blocks_of(parts), k, excluded=dead)
    return (ids, similarities), len(rows)
