"""Pages and cards of a database: search results, one patch, samples with their neighbors, the dataset card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rdm.database import RetrievalDatabase
from rdm.report.cards import DatasetCard, dataset_card
from rdm.report.data import Draw, Estimate, Neighbor, Query, QueryNeighbors, SampleGroup
from rdm.report.data import Sample as DrawnSample
from rdm.report.gallery import GallerySection, write_gallery
from rdm.sampling.pipeline import Sample

KEPT = ("success", "imported")  # status of a ledger row that the database has patches of


def neighbors_of(
    database: RetrievalDatabase | None, ids: NDArray[np.int64], similarities: NDArray[np.float32]
) -> tuple[Neighbor, ...]:
    """Return the pixels of patches with their similarities; without a database there are none."""
    if database is None or len(ids) == 0:
        return ()
    pixels = [np.asarray(image) for image in database.pixels(ids)]
    return tuple(Neighbor(p, float(s), int(i)) for p, s, i in zip(pixels, similarities, ids, strict=True))


def write_search_gallery(
    path: Path, database: RetrievalDatabase, label: str, ids: NDArray[np.int64], similarities: NDArray[np.float32]
) -> None:
    """Write the patches found for a query as a page."""
    lookup = QueryNeighbors(Query("text", text=label), neighbors_of(database, ids, similarities))
    write_gallery([GallerySection(f"{len(ids)} nearest patches", lookups=(lookup,))], path, f"Search: {label}")


def write_patch_page(path: Path, database: RetrievalDatabase, patch_id: int, k: int) -> None:
    """Write a page with a patch, its photograph and its nearest neighbors (itself the first)."""
    own = np.array([patch_id], np.int64)
    record = database.records(own)[0]
    ids, similarities = database.search_vectors(
        database.embeddings(own), min(k, database.version.num_live_patches), exact=True
    )
    patch = np.asarray(database.pixels(own)[0])
    note = f"Image {record.image_id}, pixels {record.box}. {record.author} {record.license} {record.url}"
    write_gallery(
        [
            GallerySection("Photograph", note=note, pictures=(np.asarray(database.photograph(patch_id)), patch)),
            GallerySection(
                "Neighbors",
                lookups=(
                    QueryNeighbors(Query("image", pixels=patch), neighbors_of(database, ids[0], similarities[0])),
                ),
            ),
        ],
        path,
        f"Patch {patch_id}",
    )


def sample_groups(
    samples: Sequence[Sample],
    database: RetrievalDatabase | None,
    guidance_scale: float | None = None,
    query_pixels: dict[str, NDArray[np.uint8]] | None = None,
) -> list[SampleGroup]:
    """Return samples grouped by query, in order; unconditional ones form one group with a draw each."""

    def draw(members: list[Sample]) -> Draw:
        query = members[0].query
        return Draw(
            neighbors_of(database, query.neighbor_ids, query.similarities),
            tuple(DrawnSample(item.pixels, item.seed) for item in members),
        )

    groups = []
    for kind, of_kind in groupby(samples, key=lambda item: item.query.kind):
        if kind == "unconditional":
            by_neighbors = groupby(of_kind, key=lambda item: item.query.neighbor_ids.tolist())
            draws = tuple(draw(list(members)) for _, members in by_neighbors)
            groups.append(SampleGroup(Query("unconditional"), draws, guidance_scale))
            continue
        for label, members in groupby(of_kind, key=lambda item: item.query.label):
            pixels = (query_pixels or {}).get(label)
            query = Query("image", text=label, pixels=pixels) if pixels is not None else Query("text", text=label)
            groups.append(SampleGroup(query, (draw(list(members)),), guidance_scale))
    return groups


def write_sample_gallery(path: Path, samples: Sequence[Sample], database: RetrievalDatabase | None) -> None:
    """Write pictures beside the neighbors that conditioned them as a page."""
    sections = [GallerySection("Samples", samples=tuple(sample_groups(samples, database)))]
    write_gallery(sections, path, f"{len(samples)} samples")


def database_card(database: RetrievalDatabase, contact: str) -> str:
    """Return the dataset card of a version as Markdown."""
    version = database.version
    ledgers = [
        database.folder.read_table(part.path, ["status", "error_message", "license", "author"])
        for part in version.parts_of("ledger")
    ]
    rows = [row for ledger in ledgers for row in ledger.to_pylist()]
    licenses = Counter(row["license"] or "not stated" for row in rows if row["status"] in KEPT)
    license_url = licenses.most_common(1)[0][0] if licenses else ""
    authors = {row["author"] for row in rows if row["author"]}
    left_out = Counter(row["error_message"].partition(":")[0] for row in rows if row["status"] not in KEPT)
    if duplicates := sum(part.num_rows for part in version.parts_of("duplicates")):
        left_out["near-duplicate of another"] = duplicates
    index = version.index
    credits = (
        f"{len(authors)} authors are named per photograph in `images/*.parquet`"
        if authors
        else "the source does not link photographs to their authors"
    )
    return dataset_card(
        DatasetCard(
            name=version.source,
            license_id="cc-by-2.0" if license_url.endswith("/by/2.0/") else "other",
            license_url=license_url if license_url.startswith("http") else "",
            source=version.source,
            num_photographs=version.num_images,
            num_patches=version.num_live_patches,
            num_removed=len(version.tombstones),
            embedding_dim=version.embedding_dim,
            index_key=index["index_key"],
            encoder_name=database.encoder_name,
            encoder_fingerprint=database.encoder_digest,
            version=version.number,
            digest=version.source_fingerprint,
            removal_contact=contact,
            credits=credits,
            ledger=dict(left_out),
            dropped_patches=version.dropped_patches,
            recall=Estimate(
                index["recall_at_20"],
                index["recall_at_20"] - index["recall_ci95"],
                index["recall_at_20"] + index["recall_ci95"],
            ),
        )
    )
