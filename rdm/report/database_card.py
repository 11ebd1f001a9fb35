"""The dataset card of a version, from its ledgers: contents, authors, licenses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from rdm.database import RetrievalDatabase
from rdm.database.settings import settings_of
from rdm.report.cards import DatasetCard, dataset_card
from rdm.sources.causes import cause_of
from rdm.sources.ledger import FAILED, SKIPPED
from rdm.storage import PartRows, part_rows

NOT_STATED = "not stated"
CC_BY_2 = "https://creativecommons.org/licenses/by/2.0/"
NOT_SCREENED = "Nobody looked at the photographs for people, personal data or harmful content"


@dataclass
class _Counts:
    """What the ledgers say: of the photographs with living patches, and of those that were left
    out."""

    photographs: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    authors: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def database_card(database: RetrievalDatabase, contact: str) -> str:
    """Return the dataset card of a version as Markdown.

    Args:
        database: the version.
        contact: whom to ask for the removal of a photograph; empty: the card says that nobody is
            named.
    """
    facts, counts = database.facts(), _count(database)
    # The header holds one license; where there are several, the card has a table of them.
    named = [license_name for license_name in counts.licenses if license_name != NOT_STATED]
    only = named[0] if len(counts.licenses) == 1 and named else ""
    if facts.near_duplicates:
        counts.left_out["near-duplicate of another"] = facts.near_duplicates

    card = DatasetCard(
        name=facts.source,
        license_id="cc-by-2.0" if only == CC_BY_2 else "other",
        license_url=only if only.startswith("http") else "",
        source=facts.source,
        facts=facts,
        removal_contact=contact,
        credits=_credits(counts),
        licenses=dict(counts.licenses),
        ledger=dict(counts.left_out),
        known_gaps=tuple(_gaps(database, counts)),
    )
    return dataset_card(card)


def _count(database: RetrievalDatabase) -> _Counts:
    counts, version = _Counts(), database.version
    failed: dict[str, str] = {}  # a photograph that was asked for again may have come later

    columns = ["image_id", "status", "error_message", "license", "author"]
    for ledger, patches in zip(version.parts_of("ledger"), part_rows(version), strict=True):
        rows = database.folder.read_table(ledger.path, columns).to_pylist()
        for number in _living_rows(database, patches):
            counts.photographs += 1
            counts.licenses[rows[number]["license"] or NOT_STATED] += 1
            counts.authors[rows[number]["author"] or NOT_STATED] += 1

        # The last word counts: what failed at first may have come with a later part.
        for row in rows:
            failed.pop(row["image_id"], None)
            if row["status"] in (FAILED, SKIPPED):
                failed[row["image_id"]] = cause_of(row["error_message"])
    counts.left_out.update(failed.values())
    return counts


def _living_rows(database: RetrievalDatabase, patches: PartRows) -> list[int]:
    """Return the rows of a ledger whose photographs have living patches."""
    rows = database.folder.read_table(patches.part.path, ["image_row"])["image_row"].to_numpy()
    return np.unique(rows[patches.living]).tolist()


def _credits(counts: _Counts) -> str:
    authors = len(counts.authors) - (NOT_STATED in counts.authors)
    if not authors:
        return "The source does not link photographs to their authors."
    return f"{authors:,} authors are named, each beside the photographs, in `images/*.parquet`."


def _gaps(database: RetrievalDatabase, counts: _Counts) -> list[str]:
    config, gaps = settings_of(database.version), []

    if missing := sum(counts.left_out.values()):
        gaps.append(f"{missing:,} photographs that were asked for are not in it, see Left out.")

    for name, what in (("author", counts.authors), ("license", counts.licenses)):
        if (unstated := what[NOT_STATED]) and counts.photographs:
            gaps.append(
                f"{unstated:,} of {counts.photographs:,} photographs have no {name} stated."
            )

    # What the settings left undone.
    if config.filters.near_duplicate_bits is None:
        gaps.append("Near-duplicates were not looked for.")
    if not database.has_pixels:
        gaps.append("It holds no pixels: the embeddings were imported.")
    elif config.crop.mode == "random":
        gaps.append("Patches are random crops: what lies outside of them cannot be found.")
    return [*gaps, f"{NOT_SCREENED}."]
