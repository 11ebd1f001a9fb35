"""Changes of an update: a table, and a page with the new patches and the ids of removed ones."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rdm.database import RetrievalDatabase
from rdm.database.changes.version_diff import RemovedPatch, VersionChanges
from rdm.report.data import Pixels
from rdm.report.html.page import render, write_text

MAX_PICTURES = 96
MAX_REMOVED = 500  # photographs that the page lists by id, for each cause

ChangeRow = dict[str, str]


@dataclass(frozen=True, eq=False)
class NewPatch:
    """A patch that the page shows, with what its photograph asks to be credited with."""

    patch_id: int
    image_id: str
    author: str
    license: str
    url: str
    pixels: Pixels


@dataclass(frozen=True)
class RemovedGroup:
    """The photographs that lost patches by one cause: `(image id, patch ids)`, and how many are not
    listed."""

    cause: str
    num_patches: int
    photographs: tuple[tuple[str, str], ...]
    num_unlisted: int


def change_rows(changes: VersionChanges) -> list[ChangeRow]:
    """Return the table of what changed: rows of `what`, `count` and `detail`, all texts."""
    index = changes.index
    recall = f"recall@20 {_recall(index.recall_before)} before, {index.recall_after:.4f} now"
    decision = index.action if index.action == "extended" else f"{index.action}: {index.reason}"

    rows = [
        _row("photographs added", changes.num_new_photographs),
        _row("patches added", changes.added.num_rows),
        *(
            _row(f"photographs: {cause}", count)
            for cause, count in sorted(changes.removed_photographs.items())
        ),
        *(
            _row(f"patches: {cause}", count)
            for cause, count in sorted(changes.removed_patches.items())
        ),
        *(_row(f"not usable: {cause}", count) for cause, count in changes.failures.items()),
        _row("patches in the index", index.num_vectors_after, f"{decision}; {recall}"),
    ]

    # Stored neighbors, which an update repairs only where they changed.
    for table in changes.tables:
        detail = (
            f"of {table.num_rows:,} rows have other neighbors now, in {table.changed_shards} shards"
        )
        rows.append(_row(f"neighbors of {table.name}", table.touched_rows, detail))
    return rows


def write_changes_page(
    path: Path,
    database: RetrievalDatabase,
    changes: VersionChanges,
    max_pictures: int = MAX_PICTURES,
    max_removed: int = MAX_REMOVED,
) -> None:
    """Write what changed as one HTML file that needs no other file and no network; atomic.

    Args:
        path: of the page.
        database: the newest version: what is deleted in it is not shown, though it was new once.
        changes: what is told.
        max_pictures: new patches that are shown, first one of each photograph.
        max_removed: removed photographs that are listed by id, of each cause.

    Raises:
        StorageError: the page cannot be written, or a part cannot be read.
    """
    shown = (
        _chosen(changes, database.tombstones, max_pictures)
        if database.has_pixels
        else np.zeros(0, np.int64)
    )

    page = render(
        "changes.html.j2",
        title=f"Version {changes.version}: what changed",
        root=database.folder.url,
        changes=changes,
        rows=change_rows(changes),
        added=_pictures(database, shown),
        has_pixels=database.has_pixels,
        removed=_groups(changes.removed, max_removed),
    )
    write_text(path, page)


def _row(what: str, count: int, detail: str = "") -> ChangeRow:
    return {"what": what, "count": f"{count:,}", "detail": detail}


def _recall(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _chosen(
    changes: VersionChanges, tombstones: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return at most `count` of the new patches that still live: the first of each photograph
    before its others."""
    # A page must not show a photograph that was removed on request after it had been added.
    living = np.isin(changes.added["patch_id"].to_numpy(), tombstones, invert=True)
    place: dict[str, int] = {}
    ranked = []
    for row in changes.added.filter(living).to_pylist():
        place[row["image_id"]] = place.get(row["image_id"], -1) + 1
        ranked.append((place[row["image_id"]], row["patch_id"]))
    return np.array([patch_id for _, patch_id in sorted(ranked)[:count]], np.int64)


def _pictures(database: RetrievalDatabase, ids: NDArray[np.int64]) -> list[NewPatch]:
    return [
        NewPatch(
            record.patch_id,
            record.image_id,
            record.author,
            record.license,
            record.url,
            np.asarray(image),
        )
        for record, image in zip(database.records(ids), database.pixels(ids), strict=True)
    ]


def _groups(removed: tuple[RemovedPatch, ...], most: int) -> list[RemovedGroup]:
    groups = []
    for cause, of_cause in groupby(
        sorted(removed, key=lambda patch: (patch.cause, patch.image_id)), _cause_of
    ):
        patches = list(of_cause)
        ids = {
            image_id: list(members)
            for image_id, members in groupby(patches, lambda patch: patch.image_id)
        }

        # A cause may have removed thousands: the first stand for them.
        listed = [
            (image_id, ", ".join(str(patch.patch_id) for patch in members))
            for image_id, members in list(ids.items())[:most]
        ]
        groups.append(RemovedGroup(cause, len(patches), tuple(listed), len(ids) - len(listed)))
    return groups


def _cause_of(patch: RemovedPatch) -> str:
    return patch.cause
