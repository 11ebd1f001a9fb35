"""The dataset card of a database's version, from its ledgers: what there is, by whom, under what license."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rdm.database import RetrievalDatabase
from rdm.report.cards import DatasetCard, dataset_card
from rdm.report.data import recall_of
from rdm.sources.causes import cause_of
from rdm.sources.ledger import FAILED, SKIPPED
from rdm.storage import Part

NOT_STATED = "not stated"
CC_BY_2 = "https://creativecommons.org/licenses/by/2.0/"
NOT_SCREENED = "Nobody looked at the photographs for people, personal data or harmful content"


@dataclass
class _Counts:
    """What the ledgers say: of the photographs with living patches, and of those that were left out."""

    photographs: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    authors: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def database_card(database: RetrievalDatabase, contact: str) -> str:
    """Return the dataset card of a version as Markdown.

    Args:
        database: the version.
        contact: whom to ask for the removal of a photograph; empty: the card says that nobody is named.
    """
    version, index, counts = database.version, database.version.index, _count(database)
    named = [license_name for license_name in counts.licenses if license_name != NOT_STATED]
    only = named[0] if len(counts.licenses) == 1 and named else ""
    if duplicates := sum(part.num_rows for part in version.parts_of("duplicates")):
        counts.left_out["near-duplicate of another"] = duplicates
    card = DatasetCard(
        name=version.source,
        license_id="cc-by-2.0" if only == CC_BY_2 else "other",
        license_url=only if only.startswith("http") else "",
        source=version.source,
        num_photographs=version.num_images,
        num_patches=version.num_live_patches,
        num_removed=len(version.deleted_image_ids),
        num_deleted_patches=len(version.tombstones),
        embedding_dim=version.embedding_dim,
        index_key=index["index_key"],
        encoder_name=database.encoder_name,
        encoder_fingerprint=database.encoder_digest,
        version=version.number,
        digest=version.source_fingerprint,
        removal_contact=contact,
        credits=_credits(counts),
        licenses=dict(counts.licenses),
        ledger=dict(counts.left_out),
        dropped_patches=version.dropped_patches,
        recall=recall_of(index),
        known_gaps=tuple(_gaps(database, counts)),
    )
    return dataset_card(card)


def _count(database: RetrievalDatabase) -> _Counts:
    counts, first, version = _Counts(), 0, database.version
    failed: dict[str, str] = {}  # a photograph that was asked for again may have come later
    columns = ["image_id", "status", "error_message", "license", "author"]
    for ledger, patches in zip(version.parts_of("ledger"), version.parts_of("patches"), strict=True):
        rows = database.folder.read_table(ledger.path, columns).to_pylist()
        for number in _living_rows(database, patches, first):
            counts.photographs += 1
            counts.licenses[rows[number]["license"] or NOT_STATED] += 1
            counts.authors[rows[number]["author"] or NOT_STATED] += 1
        for row in rows:
            failed.pop(row["image_id"], None)
            if row["status"] in (FAILED, SKIPPED):
                failed[row["image_id"]] = cause_of(row["error_message"])
        first += patches.num_rows
    counts.left_out.update(failed.values())
    return counts


def _living_rows(database: RetrievalDatabase, patches: Part, first: int) -> list[int]:
    """Return the rows of a ledger whose photographs have living patches."""
    rows = database.folder.read_table(patches.path, ["image_row"])["image_row"].to_numpy()
    alive = np.isin(np.arange(first, first + len(rows)), database.tombstones, invert=True)
    return np.unique(rows[alive]).tolist()


def _credits(counts: _Counts) -> str:
    authors = len(counts.authors) - (NOT_STATED in counts.authors)
    if not authors:
        return "The source does not link photographs to their authors."
    return f"{authors:,} authors are named, each beside the photographs, in `images/*.parquet`."


def _gaps(database: RetrievalDatabase, counts: _Counts) -> list[str]:
    config: dict[str, Any] = database.version.config
    filters, gaps = config["filters"], []
    if missing := sum(counts.left_out.values()):
        gaps.append(f"{missing:,} photographs that were asked for are not in it, see Left out.")
    for name, what in (("author", counts.authors), ("license", counts.licenses)):
        if (unstated := what[NOT_STATED]) and counts.photographs:
            gaps.append(f"{unstated:,} of {counts.photographs:,} photographs have no {name} stated.")
    if filters["near_duplicate_bits"] is None:
        gaps.append("Near-duplicates were not looked for.")
    if not database.has_pixels:
        gaps.append("It holds no pixels: the embeddings were imported.")
    elif config["crop"]["mode"] == "random":
        gaps.append("Patches are random crops: what lies outside of them cannot be found.")
    return [*gaps, f"{NOT_SCREENED}."]
