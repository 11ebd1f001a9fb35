"""Exact repair of stored neighbors after patches came and went, at the cost of the change.

Top-k over (D - gone) + added is the merge of the stored top-k, without the gone, with the top-k
over the added. A merged row is known to be complete where its k-th neighbor ranks no later than the
last stored one did: everything that was never stored ranks after that. The other rows are looked up
again, against every vector. All this holds of the allowed patches as of all: an excluded patch
stays so, and those that rank before the k-th neighbor are stored too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rdm.database.embedding_parts import EmbeddingParts, since
from rdm.database.neighbors.exclusion import (
    Exclude,
    Lookup,
    Neighbors,
    search_allowed,
    split_ranking,
    trimmed,
    with_rows,
)
from rdm.database.search.exact import blocks_of, exact_search


def merge_lookups(
    stored: Lookup, added: Lookup, dead: NDArray[np.int64]
) -> tuple[Lookup, NDArray[np.bool_]]:
    """Merge stored nearest patches [N, k] with the nearest of the added [N, m], less the dead.

    Args:
        stored: the k nearest before the change, or all where there were fewer.
        added: the nearest among the added patches: k of them, or all where there are fewer.
        dead: ids that may not be found any longer.

    Returns:
        The merged neighbors [N, k], and bool [N]: whether the row is certainly the k nearest now.
    """
    # All that is known of each row, side by side: allowed and excluded, stored and added.
    k = stored.neighbors[0].shape[1]
    members = (stored.neighbors, stored.excluded, added.neighbors, added.excluded)
    ids = np.concatenate([member[0] for member in members], axis=1)
    similarities = np.concatenate([member[1] for member in members], axis=1)
    # Every second member holds excluded patches.
    excluded = np.concatenate(
        [np.full(member[0].shape, number % 2 == 1) for number, member in enumerate(members)], 1
    )

    # The dead become empty places, which rank last.
    alive = np.isin(ids, dead, invert=True)
    ids, similarities = np.where(alive, ids, -1), np.where(alive, similarities, np.float32(-np.inf))

    # In the canonical order: by similarity, ties by smaller id.
    order = np.lexsort((ids, -similarities), axis=-1)
    ids, similarities, excluded = (
        np.take_along_axis(values, order, 1) for values in (ids, similarities, excluded)
    )

    merged = split_ranking((ids, similarities), excluded, k)
    return merged, _ranks_no_later(merged.neighbors, stored.neighbors)


def _ranks_no_later(merged: Neighbors, stored: Neighbors) -> NDArray[np.bool_]:
    """Return bool [N]: whether the merged k-th ranks no later than the stored k-th did."""
    last, least = (values[:, -1] for values in merged)
    tied = (least == stored[1][:, -1]) & (last <= stored[0][:, -1])
    return (least > stored[1][:, -1]) | tied


def repair_neighbors(
    queries: NDArray[np.float16],
    stored: Lookup,
    parts: EmbeddingParts,
    first_added: int,
    dead: NDArray[np.int64],
    exclude: Exclude | None = None,
) -> tuple[Lookup, int]:
    """Return the k nearest living patches after a change, and the number of rows searched anew.

    The result equals that of a new lookup of every row bit for bit.

    Args:
        queries: float16 [N, dim], the very unit vectors of the stored lookup.
        stored: ids and similarities [N, k] before the change, and what was excluded.
        parts: all embeddings, the added ones in parts of their own at the end.
        first_added: the first patch id of what was added; the next free one where nothing was.
        dead: sorted ids of all deleted patches.
        exclude: the rule by which they were looked up.
    """
    # Compare with the added patches alone.
    k = stored.neighbors[0].shape[1]
    added = exact_lookup(queries, since(parts, first_added), k, dead, exclude)
    merged, sure = merge_lookups(stored, added, dead)

    # Too many of a row's neighbors died: a patch that was never stored may rank among the k.
    rows = np.flatnonzero(~sure)
    if len(rows):
        again = exact_lookup(queries[rows], parts, k, dead, exclude and _at_rows(exclude, rows))
        merged = _replaced(merged, rows, again)

    return merged, len(rows)


def exact_lookup(
    queries: NDArray[np.float16],
    parts: EmbeddingParts,
    k: int,
    dead: NDArray[np.int64],
    exclude: Exclude | None,
) -> Lookup:
    """Return the k nearest allowed living patches of queries [N, dim], against every vector."""
    return search_allowed(
        lambda some, width: exact_search(some, blocks_of(parts), width, excluded=dead),
        queries,
        k,
        exclude,
    )


def _at_rows(exclude: Exclude, chosen: NDArray[np.intp]) -> Exclude:
    """Return the rule for a choice of rows: its row numbers count among the chosen."""
    return lambda rows, candidates: exclude(chosen[rows], candidates)


def _replaced(lookup: Lookup, rows: NDArray[np.intp], again: Lookup) -> Lookup:
    return Lookup(
        with_rows(lookup.neighbors, rows, again.neighbors),
        trimmed(with_rows(lookup.excluded, rows, again.excluded)),
    )
