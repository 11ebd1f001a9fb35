"""Pages of a database: search results, one patch, samples with their neighbors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rdm.database import RetrievalDatabase
from rdm.report.data import Draw, Neighbor, Query, QueryNeighbors, SampleGroup
from rdm.report.data import Sample as DrawnSample
from rdm.report.html.gallery import GallerySection, write_gallery
from rdm.report.html.page import render, write_text
from rdm.sampling.drawing.pipeline import Sample
from rdm.sampling.output import GALLERY, read_samples
from rdm.sampling.recorder import public_names
from rdm.sampling.retrieval.queries import Query as SampleQuery

MAX_GALLERY = 256  # pictures on a page that holds them all


def neighbors_of(
    database: RetrievalDatabase | None, ids: NDArray[np.int64], similarities: NDArray[np.float32]
) -> tuple[Neighbor, ...]:
    """Return the pixels of patches with their similarities; without a database there are none."""
    if database is None or len(ids) == 0:
        return ()
    pixels = [np.asarray(image) for image in database.pixels(ids)]
    return tuple(
        Neighbor(p, float(s), int(i)) for p, s, i in zip(pixels, similarities, ids, strict=True)
    )


def write_search_gallery(
    path: Path,
    database: RetrievalDatabase,
    label: str,
    ids: NDArray[np.int64],
    similarities: NDArray[np.float32],
) -> None:
    """Write the patches found for a query as a page.

    Args:
        path: the page.
        database: that was searched.
        label: of the query.
        ids: of the patches found, nearest first, [k].
        similarities: theirs, [k].
    """
    lookup = QueryNeighbors(Query("text", text=label), neighbors_of(database, ids, similarities))
    write_gallery(
        [GallerySection(f"{len(ids)} nearest patches", lookups=(lookup,))], path, f"Search: {label}"
    )


def write_patch_page(path: Path, database: RetrievalDatabase, patch_id: int, k: int) -> None:
    """Write a page with a patch in its photograph, and its nearest neighbors, itself the first.

    Args:
        path: the page.
        database: of the patch.
        patch_id: which one.
        k: neighbors shown.

    Raises:
        DatabaseError: there is no such patch (any more), or the database has no pixels.
        StorageError: the page cannot be written.
    """
    own = np.array([patch_id], np.int64)
    record, photograph = database.records(own)[0], np.asarray(database.photograph(patch_id))

    # Exact: the patch itself must come first, and the index may miss it.
    found = database.search_vectors(
        database.embeddings(own), min(k, database.version.num_live_patches), exact=True
    )
    ids, similarities = found[0][0], found[1][0]
    query = Query("image", pixels=np.asarray(database.pixels(own)[0]))

    page = render(
        "patch.html.j2",
        title=f"Patch {patch_id}",
        root=database.folder.url,
        version=database.version.number,
        record=record,
        photograph=photograph,
        place=_place(record.box, photograph.shape[1], photograph.shape[0]),
        lookup=QueryNeighbors(query, neighbors_of(database, ids, similarities)),
        neighbors=list(zip(database.records(ids), similarities.tolist(), strict=True)),
    )
    write_text(path, page)


def _place(box: tuple[int, int, int, int], width: int, height: int) -> str:
    """Return the style of a frame that lies over a photograph where a box is."""
    x0, y0, x1, y1 = box
    # In shares of the photograph, which the page scales to its own width.
    shares = (x0 / width, y0 / height, 1 - x1 / width, 1 - y1 / height)
    left, top, right, bottom = (f"{100 * share:.2f}%" for share in shares)
    return f"left:{left};top:{top};right:{right};bottom:{bottom}"


def conditioning_of(
    databases: Mapping[str, RetrievalDatabase], query: SampleQuery
) -> tuple[Neighbor, ...]:
    """Return the pixels of a query's neighbors, each from its database; by default the first."""
    ids, found = query.neighbor_ids, list[Neighbor]()
    if not databases:
        return ()
    first = next(iter(databases.values()))
    homes = [databases.get(name, first) for name in query.databases] or [first] * len(ids)
    for place, home in enumerate(homes):
        one = slice(place, place + 1)
        found += neighbors_of(home, ids[one], query.similarities[one])
    return tuple(found)


def sample_groups(
    samples: Sequence[Sample],
    databases: Mapping[str, RetrievalDatabase],
    guidance_scale: float | None = None,
    query_pixels: dict[str, NDArray[np.uint8]] | None = None,
) -> list[SampleGroup]:
    """Return samples by query, in order; unconditional ones form one group with a draw each.

    Args:
        samples: in any order.
        databases: where neighbors are shown from, by name; none of a model without.
        guidance_scale: to show; None: not shown.
        query_pixels: pictures of image queries by label.
    """

    def draw(members: list[Sample]) -> Draw:
        query = members[0].query
        return Draw(
            conditioning_of(databases, query),
            tuple(DrawnSample(item.pixels, item.seed) for item in members),
        )

    groups = []
    # By kind, then by query: pictures of one query stand side by side.
    for kind, of_kind in groupby(samples, key=lambda item: item.query.kind):
        if kind == "unconditional":
            by_neighbors = groupby(of_kind, key=lambda item: item.query.neighbor_ids.tolist())
            draws = tuple(draw(list(members)) for _, members in by_neighbors)
            groups.append(SampleGroup(Query("unconditional"), draws, guidance_scale))
            continue
        for label, members in groupby(of_kind, key=lambda item: item.query.label):
            pixels = (query_pixels or {}).get(label)
            query = (
                Query("image", text=label, pixels=pixels)
                if pixels is not None
                else Query("text", text=label)
            )
            groups.append(SampleGroup(query, (draw(list(members)),), guidance_scale))
    return groups


def write_sample_gallery(out: Path, databases: Mapping[str, RetrievalDatabase], total: int) -> Path:
    """Write and return a page of a folder's first pictures beside their neighbors."""
    # Records have names of databases that say nothing of this machine.
    names = public_names(databases)
    databases = {names[name]: database for name, database in databases.items()}
    path, samples = out / GALLERY, read_samples(out, MAX_GALLERY)
    sections = [GallerySection("Samples", samples=tuple(sample_groups(samples, databases)))]
    shown = (
        f"{total} samples"
        if len(samples) == total
        else f"The first {len(samples)} of {total} samples"
    )
    write_gallery(sections, path, shown)
    return path
