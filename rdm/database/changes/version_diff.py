"""The difference of two versions of a database, at the cost of the parts in which they differ."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.config import Record
from rdm.database.contract import DUPLICATES_KIND
from rdm.database.neighbors.exclusion import Lookup
from rdm.database.neighbors.table import NeighborTable, stored_lookup
from rdm.errors import UsageError
from rdm.sources.causes import cause_of
from rdm.sources.ledger import FAILED, SKIPPED
from rdm.storage import Folder, IndexDecision, Version, VersionStore

REQUESTED, REPLACED, LOOKS_ALIKE, PATCH_REQUESTED, VANISHED = (
    "removed on request",
    "replaced in the source",
    "looks like another photograph",
    "single patch removed on request",
    "vanished from the source",
)
"""Causes for which patches go."""
KEPT = IndexDecision(action="kept", reason="no patch came or went")


@dataclass(frozen=True)
class RemovedPatch:
    """A patch that is gone. Its photograph is known by its id alone."""

    patch_id: int
    image_id: str
    cause: str


class IndexChange(Record):
    """The change of the index, and its recall@20 on the audit sample before and after."""

    action: str
    reason: str
    recall_before: float | None
    recall_after: float
    num_vectors_before: int
    num_vectors_after: int


class TableChange(Record):
    """The change of a query set's neighbors; a new table has no touched rows."""

    name: str
    num_rows: int
    touched_rows: int
    changed_shards: int


class ChangeFacts(Record):
    """The numbers of a change from one version to another."""

    since: int
    version: int
    photographs_added: int
    patches_added: int
    photographs_removed: dict[str, int]
    """By cause, as patches are."""
    patches_removed: dict[str, int]
    failures: dict[str, int]
    index: IndexChange
    query_sets: dict[str, TableChange]


@dataclass(frozen=True, eq=False)
class VersionChanges:
    """The difference between two versions; patches that came and went between are in no list."""

    since: int
    version: int
    added: pa.Table
    """`patch_id` and `image_id` of the living patches that are new, by id."""
    num_new_photographs: int
    """Photographs with a living patch now that had none before; replaced ones had."""
    removed: tuple[RemovedPatch, ...]
    failures: dict[str, int]
    """Photographs that were requested and not used, by cause; those that filters left out, too."""
    index: IndexChange
    tables: tuple[TableChange, ...]

    @property
    def removed_photographs(self) -> dict[str, int]:
        """How many photographs lost patches, by cause."""
        return dict(
            Counter(cause for _, cause in {(patch.image_id, patch.cause) for patch in self.removed})
        )

    @property
    def removed_patches(self) -> dict[str, int]:
        """How many patches went, by cause."""
        return dict(Counter(patch.cause for patch in self.removed))

    def facts(self) -> ChangeFacts:
        """Return the numbers."""
        return ChangeFacts(
            since=self.since,
            version=self.version,
            photographs_added=self.num_new_photographs,
            patches_added=self.added.num_rows,
            photographs_removed=self.removed_photographs,
            patches_removed=self.removed_patches,
            failures=self.failures,
            index=self.index,
            query_sets={table.name: table for table in self.tables},
        )


def describe_changes(
    folder: Folder, *, since: int | None = None, version: int | None = None
) -> VersionChanges:
    """Return what changed between two versions, by default the previous and the current one.

    Raises:
        DatabaseError: the root is no database, or a version is not there (any more).
        UsageError: the versions are in the wrong order.
    """
    # The first version has none before it: everything in it is new.
    store = VersionStore(folder)
    new = store.require(version)
    old = None
    if new.number > 1 or since is not None:
        old = store.require(new.number - 1 if since is None else since)
    if old is not None and old.number > new.number:
        raise UsageError(
            f"version {old.number} is newer than version {new.number}",
            where=folder.url,
            fix="exchange the two",
        )

    # Added before removed: a photograph that lost patches and has new ones was replaced.
    added = _added(folder, old, new)
    removed = tuple(_removed(folder, old, new, set(added["image_id"].to_pylist()))) if old else ()
    replaced = {patch.image_id for patch in removed}

    return VersionChanges(
        since=old.number if old else 0,
        version=new.number,
        added=added,
        num_new_photographs=len(set(added["image_id"].to_pylist()) - replaced),
        removed=removed,
        failures=_failures(folder, old, new),
        index=_index_change(old, new),
        tables=tuple(_table_changes(folder, old, new)),
    )


def _rows(
    folder: Folder, version: Version, wanted: NDArray[np.int64]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield `patch_id`, `image_id` of the parts that hold sorted ids: all rows, and the wanted."""
    # Ids are row numbers, so a part's wanted ids are one slice.
    first = 0
    for part in version.parts_of("patches"):
        low, high = np.searchsorted(wanted, [first, first + part.num_rows])
        first += part.num_rows
        if low < high:
            table = folder.read_table(part.path, ["patch_id", "image_id"])
            yield table, table.filter(pc.is_in(table["patch_id"], pa.array(wanted[low:high])))


def _added(folder: Folder, old: Version | None, new: Version) -> pa.Table:
    """Return the living patches of a version that the old one did not have."""
    ids = np.arange(old.next_patch_id if old else 0, new.next_patch_id, dtype=np.int64)
    living = np.setdiff1d(ids, np.array(new.tombstones, np.int64))
    empty = pa.table({"patch_id": pa.array([], pa.int64()), "image_id": pa.array([], pa.string())})
    return pa.concat_tables([empty, *(chosen for _, chosen in _rows(folder, new, living))])


def _removed(
    folder: Folder, old: Version, new: Version, added_images: set[str]
) -> Iterator[RemovedPatch]:
    """Yield the patches that lived in the old version and are deleted in the new, with causes."""
    dead = np.setdiff1d(np.array(new.tombstones, np.int64), np.array(old.tombstones, np.int64))
    tombstones = pa.array(new.tombstones, pa.int64())
    requested, duplicates = set(new.deleted_image_ids), _duplicates(folder, new)

    # Only parts that lost a patch are read.
    for everything, gone in _rows(folder, old, dead[dead < old.next_patch_id]):
        living = everything.filter(pc.invert(pc.is_in(everything["patch_id"], tombstones)))
        surviving = set(living["image_id"].to_pylist())

        for row in gone.to_pylist():
            # The first cause that holds, from the most to the least certain.
            image_id = row["image_id"]
            causes = (
                (image_id in requested, REQUESTED),
                (image_id in surviving, PATCH_REQUESTED),
                (image_id in added_images, REPLACED),
                (image_id in duplicates, LOOKS_ALIKE),
            )
            cause = next((name for holds, name in causes if holds), VANISHED)
            yield RemovedPatch(row["patch_id"], image_id, cause)


def _duplicates(folder: Folder, version: Version) -> set[str]:
    tables = (
        folder.read_table(part.path, ["image_id"]) for part in version.parts_of(DUPLICATES_KIND)
    )
    return {image_id for table in tables for image_id in table["image_id"].to_pylist()}


def _failures(folder: Folder, old: Version | None, new: Version) -> dict[str, int]:
    """Count the new ledgers' unusable photographs by cause, the most frequent first."""
    before = {part.path for part in old.parts} if old else set()
    counts: Counter[str] = Counter()
    for part in new.parts_of("ledger"):
        if part.path not in before:
            rows = folder.read_table(part.path, ["status", "error_message"]).to_pylist()
            counts.update(
                cause_of(row["error_message"]) for row in rows if row["status"] in (FAILED, SKIPPED)
            )
    return dict(counts.most_common())


def _index_change(old: Version | None, new: Version) -> IndexChange:
    stays = old is not None and old.parts_of("index") == new.parts_of("index")
    decision = KEPT if stays else new.index.decision
    return IndexChange(
        action=decision.action,
        reason=decision.reason,
        recall_before=old.index.recall_at_20 if old else None,
        recall_after=new.index.recall_at_20,
        num_vectors_before=old.index.num_vectors if old else 0,
        num_vectors_after=new.index.num_vectors,
    )


def _table_changes(folder: Folder, old: Version | None, new: Version) -> Iterator[TableChange]:
    """Yield the change of each table of the new version."""
    known = NeighborTable.names(folder, old) if old else []
    for name in NeighborTable.names(folder, new):
        table = NeighborTable(folder, name, new)
        # Rows are compared only where the table is of the same crops as before.
        touched: Sequence[int] = ()
        if old is not None and name in known:
            before = NeighborTable(folder, name, old)
            if before.info.queries_digest == table.info.queries_digest:
                touched = [_touched_rows(before, table, stem) for stem in table.info.stems]

        yield TableChange(
            name=name,
            num_rows=table.info.num_queries,
            touched_rows=sum(touched),
            changed_shards=sum(count > 0 for count in touched),
        )


def _touched_rows(before: NeighborTable, after: NeighborTable, stem: str) -> int:
    """Return how many rows of a shard have other neighbors; a shard carried over is not read."""
    if before.paths(stem) == after.paths(stem):
        return 0

    old, new = (
        stored_lookup(table.table(stem), table.config.k_stored) for table in (before, after)
    )
    # Another k: no row is the same list as before.
    if old.neighbors[0].shape != new.neighbors[0].shape:
        return len(new.neighbors[0])
    return int(_differing(old, new).sum())


def _differing(old: Lookup, new: Lookup) -> NDArray[np.bool_]:
    pairs = zip(old.neighbors, new.neighbors, strict=True)
    return np.logical_or.reduce([(first != second).any(axis=1) for first, second in pairs])
