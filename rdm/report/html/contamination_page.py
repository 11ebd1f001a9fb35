"""A page of photographs that query set and database share, crop beside patch, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.neighbors.contamination import Contamination, Pair
from rdm.report.data import Neighbor, Query, QueryNeighbors
from rdm.report.html.database_pages import neighbors_of
from rdm.report.html.gallery import GallerySection, write_gallery
from rdm.sources import QuerySet


def write_contamination_page(
    path: Path, database: RetrievalDatabase, found: Contamination, worst: int = 24
) -> None:
    """Write the worst pairs as a page: those that can become neighbors first.

    Args:
        path: the page.
        database: where the patches are shown from.
        found: pairs of crop and patch.
        worst: pairs shown at most.

    Raises:
        SourceError: the query set's photographs are no longer where they were.
        DatabaseError: the database has no pixels.
        StorageError: the page cannot be written.
    """
    chosen = sorted(found.pairs, key=lambda pair: pair.excluded)[:worst]
    table = NeighborTable(database.folder, found.name, database.version)
    crops = (
        QuerySet(table.config.queries).picked({pair.crop_key for pair in chosen}) if chosen else {}
    )

    # What can become a neighbor comes first: it is what a user may have to act on.
    sections = []
    for title, excluded in (("Can become neighbors", False), ("Excluded from the neighbors", True)):
        pairs = [pair for pair in chosen if pair.excluded == excluded]
        lookups = [
            QueryNeighbors(
                Query("image", _label(pair), np.asarray(crops[pair.crop_key].image)),
                _patch(database, pair),
            )
            for pair in pairs
            if pair.crop_key in crops
        ]
        sections.append(
            GallerySection(
                title, _note(found, pairs, len(lookups), excluded), lookups=tuple(lookups)
            )
        )

    write_gallery(sections, path, f"Contamination of the database by {found.name}")


def _patch(database: RetrievalDatabase, pair: Pair) -> tuple[Neighbor, ...]:
    return neighbors_of(
        database, np.array([pair.patch_id]), np.array([pair.similarity], np.float32)
    )


def _label(pair: Pair) -> str:
    return f"{pair.query_image}; in the database {pair.image_id}; same by {pair.match}"


def _note(found: Contamination, shown: Sequence[Pair], num_shown: int, excluded: bool) -> str:
    total = len(found.pairs) - len(found.leaks) if excluded else len(found.leaks)
    lost = (
        f" {len(shown) - num_shown} crops could not be read again."
        if num_shown < len(shown)
        else ""
    )
    return (
        f"{num_shown} of {total} pairs.{lost} Near-duplicates from a similarity of "
        f"{found.threshold:g} on."
    )
