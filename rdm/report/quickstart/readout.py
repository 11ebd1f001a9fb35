"""What the swap of databases does, told in seconds: the readout of the network's expectation, a
control within one database, and what each neighbor of the page's texts contributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from rdm.config import Record
from rdm.database import RetrievalDatabase
from rdm.evaluation.influence import Retrieved, influences, readout
from rdm.sampling import Model, text_queries
from rdm.sampling.retrieval.queries import Query

_SUBJECTS = (
    "a bird",
    "a portrait",
    "flowers",
    "an animal",
    "people",
    "a landscape",
    "a face",
    "a tree",
)
_LOOKS = ("in blue", "in green", "in red and brown", "in the dark")
READOUT_TEXTS = tuple(f"{subject} {look}" for subject in _SUBJECTS for look in _LOOKS)
"""What both databases are asked for: of neither kind in particular."""

_CANDIDATES = 16  # times k: neighbors that are shared out to the two halves


class SwapReadout(Record):
    """What was measured; each list has a value for each text.

    `swap` compares the two databases, `control` two halves of the first one, which are of one kind:
    what is left there is each text's own neighbors. Both are cosines, see `readout`. `influences`
    are those of the neighbors of the page's texts, nearest first; there are none of a model that
    was never trained without neighbors.
    """

    texts: tuple[str, ...]
    swap: tuple[float, ...]
    control: tuple[float, ...]
    influences: tuple[tuple[float, ...], ...]


def measure_swap(
    model: Model,
    database: RetrievalDatabase,
    swapped: RetrievalDatabase,
    shown: Sequence[str],
    k: int,
) -> SwapReadout:
    """Measure what a model does with the neighbors of two databases.

    Args:
        model: a diffusion model that reads neighbors.
        database: the first.
        swapped: the other.
        shown: texts of the page, whose neighbors' influences are told.
        k: neighbors that condition.
    """
    most = min(_CANDIDATES * k, database.version.num_live_patches)
    candidates = text_queries(database, READOUT_TEXTS, most)
    first = Retrieved(database, [_among(query, slice(k)) for query in candidates])
    second = Retrieved(swapped, text_queries(swapped, READOUT_TEXTS, k))
    halves = _halves(database, candidates, k)
    shares: tuple[tuple[float, ...], ...] = ()
    # Shapley values start from the empty set, whose picture a model without dropout never learned.
    if model.config.conditions.dropout["neighbors"] > 0:
        of_shown = Retrieved(database, text_queries(database, shown, k))
        shares = tuple(_plain(row) for row in influences(model, of_shown))
    return SwapReadout(
        texts=READOUT_TEXTS,
        swap=_plain(readout(model, first, second)),
        control=_plain(readout(model, *halves)) if halves[0].queries else (),
        influences=shares,
    )


def _halves(
    database: RetrievalDatabase, queries: Sequence[Query], k: int
) -> tuple[Retrieved, Retrieved]:
    """Return queries with their k nearest among either half of a database's photographs.

    A query that has fewer than k candidates in a half is left out of both.
    """
    halves: tuple[list[Query], list[Query]] = ([], [])
    for query in queries:
        images = database.patch_rows(query.neighbor_ids).column("image_id").to_pylist()
        # Split by photograph: two patches of one on either side would tie the halves together.
        odd = np.array([is_odd(image) for image in images])
        if min(odd.sum(), (~odd).sum()) < k:
            continue
        for half, chosen in zip(halves, (~odd, odd), strict=True):
            half.append(_among(query, np.flatnonzero(chosen)[:k]))
    return Retrieved(database, halves[0]), Retrieved(database, halves[1])


def _among(query: Query, places: slice | NDArray[np.intp]) -> Query:
    """Return a query with some of its neighbors alone."""
    ids, similarities = query.neighbor_ids[places], query.similarities[places]
    return replace(query, neighbor_ids=ids, similarities=similarities)


def is_odd(image_id: str) -> bool:
    """Return which half of a database a photograph belongs to, a function of its id alone.

    The seed keeps these halves apart from those of `samples://`, one of which a database may be.
    """
    return xxhash.xxh3_64_intdigest(image_id.encode(), seed=2) % 2 == 1


def _plain(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
