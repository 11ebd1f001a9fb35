"""The holdings of a version: its photographs, from the ledgers, and its living patches.

Parts are immutable, so everything is read at most once, when it is needed.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rdm.database.changes.delete_where import matching_rows
from rdm.database.contract import DUPLICATES_KIND
from rdm.sources.causes import is_passing
from rdm.sources.ledger import FAILED, SUCCESS
from rdm.storage import Folder, Version, part_rows

DELETED = "deleted"  # status of a ledger row whose photograph a compaction removed from the disk
_TEXTS = ("image_id", "etag", "status", "error_message", "phash", "sha256")


@dataclass(frozen=True)
class LedgerRow:
    """The last word of the ledgers on a photograph that is stored, or that cannot be used."""

    image_id: str
    etag: str
    phash: str | None
    position: int
    """Of the row, counted over the ledgers in order."""


@dataclass(frozen=True)
class LeftOut:
    """A photograph that a version leaves out because it resembles another one."""

    duplicate_of: str
    etag: str


@dataclass(frozen=True, eq=False)
class Holdings:
    """The photographs and patches of a version; without a version there are none."""

    folder: Folder
    version: Version | None

    @cached_property
    def ledger(self) -> pa.Table:
        """The rows of all ledgers, with `was_cut`: whether the photograph ever had a patch."""
        # An empty first table gives the columns, and their types, to a database without ledgers.
        empty = {name: pa.array([], pa.string()) for name in _TEXTS}
        tables = [pa.table({**empty, "was_cut": pa.array([], pa.bool_())})]

        if self.version is not None:
            pairs = zip(
                self.version.parts_of("ledger"), self.version.parts_of("patches"), strict=True
            )
            # A ledger's row was cut where a patch, dead or alive, names it.
            for ledger, patches in pairs:
                table = self.folder.read_table(ledger.path, list(_TEXTS))
                cut = self.folder.read_table(patches.path, ["image_row"])["image_row"]
                rows = pa.array(np.arange(table.num_rows, dtype=np.int32))
                tables.append(table.append_column("was_cut", pc.is_in(rows, cut.combine_chunks())))

        return pa.concat_tables(tables, promote_options="default")

    @cached_property
    def patches(self) -> pa.Table:
        """`patch_id` and `image_id` of the living patches."""
        tables = [
            pa.table({"patch_id": pa.array([], pa.int64()), "image_id": pa.array([], pa.string())})
        ]
        for rows in part_rows(self.version) if self.version else []:
            table = self.folder.read_table(rows.part.path, ["patch_id", "image_id"])
            tables.append(table.filter(pa.array(rows.living)))
        return pa.concat_tables(tables)

    @cached_property
    def living_images(self) -> frozenset[str]:
        """The photographs with living patches."""
        return frozenset(self.patches["image_id"].unique().to_pylist())

    @cached_property
    def left_out(self) -> dict[str, LeftOut]:
        """The near-duplicates that the version leaves out, by id."""
        parts = self.version.parts_of(DUPLICATES_KIND) if self.version else []
        rows = [row for part in parts for row in self.folder.read_table(part.path).to_pylist()]
        return {row["image_id"]: LeftOut(row["duplicate_of"], row["etag"]) for row in rows}

    @cached_property
    def held_images(self) -> frozenset[str]:
        """Photographs that the version holds: with living patches, or left out by filters."""
        emptied = self.ledger.filter(
            pc.and_(pc.equal(self.ledger["status"], SUCCESS), pc.invert(self.ledger["was_cut"]))
        )
        return self.living_images.union(self.left_out, emptied["image_id"].to_pylist())

    @cached_property
    def last_rows(self) -> dict[str, LedgerRow]:
        """The last row of each photograph, apart from rows about newer bytes that failed."""
        found: dict[str, LedgerRow] = {}
        columns = [
            self.ledger[name].to_pylist()
            for name in ("image_id", "etag", "status", "error_message", "phash")
        ]

        for position, (image_id, etag, status, message, phash) in enumerate(
            zip(*columns, strict=True)
        ):
            if not _waits(image_id, status, message, self.living_images):
                found[image_id] = LedgerRow(image_id, etag, phash, position)

        return found

    def known_etags(self, *, retry_failed: bool) -> dict[str, str]:
        """Return the etag of each photograph that need not be stored again while it stays."""
        return known_etags(self.ledger, self.living_images, retry_failed=retry_failed)

    def digests(self, image_ids: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of the bytes last stored of each photograph that has one."""
        rows = self.ledger.filter(is_among(self.ledger["image_id"], frozenset(image_ids)))
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        return dict(zip(rows["image_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))

    def copies_of(self, image_ids: frozenset[str]) -> frozenset[str]:
        """Return the photographs whose bytes are those of one of these."""
        if not image_ids:
            return image_ids
        digests = frozenset(self.digests(image_ids).values())

        # Other ids with those bytes, unless their photographs were replaced since.
        alike = self.ledger.filter(is_among(self.ledger["sha256"], digests))["image_id"].to_pylist()
        return frozenset(
            image_id for image_id, digest in self.digests(alike).items() if digest in digests
        )

    def matching(self, condition: str) -> frozenset[str]:
        """Return the held photographs for whose ledger row a condition holds.

        Raises:
            UsageError: the condition cannot be understood, or does not fit the columns.
        """
        parts = self.version.parts_of("ledger") if self.version else []
        tables = [self.folder.read_table(part.path) for part in parts] or [
            self.ledger.drop_columns("was_cut")
        ]

        # A condition is about the last row of each photograph that is held.
        rows = sorted(self.last_rows[image_id].position for image_id in self.held_images)
        ledger = pa.concat_tables(tables, promote_options="default").take(rows)
        return frozenset(matching_rows(ledger, condition)["image_id"].to_pylist())


def known_etags(
    ledger: pa.Table, living: Set[str], *, retry_failed: bool = False
) -> dict[str, str]:
    """Return the etag of each photograph that need not be stored again while it stays.

    The last row of an id counts. A photograph that was deleted and is in the source again is new.
    One whose newer bytes failed for a passing cause keeps the etag of the stored ones, so that it
    is requested again.

    A stored photograph that never had a patch is known: filters left it out.

    Args:
        ledger: rows with `image_id`, `etag`, `status`, `error_message` and `was_cut`: whether there
            ever was a patch.
        living: the photographs that have living patches.
        retry_failed: leave out those that failed by a cause that may have passed, such as an error
            of the server.
    """
    known: dict[str, str] = {}
    columns = [
        ledger[name].to_pylist()
        for name in ("image_id", "etag", "status", "error_message", "was_cut")
    ]

    # In the ledgers' order, so that a later row replaces what an earlier one said.
    for image_id, etag, status, message, was_cut in zip(*columns, strict=True):
        if _waits(image_id, status, message, living):
            continue

        # It had patches, and has none: it was deleted, so in the source it is new.
        had_patches = status == DELETED or (status == SUCCESS and was_cut)
        lost = had_patches and image_id not in living

        if lost or (retry_failed and status == FAILED and is_passing(message)):
            known.pop(image_id, None)
        else:
            known[image_id] = etag
    return known


def _waits(image_id: str, status: str, message: str, living: Set[str]) -> bool:
    """Return whether a row is about newer bytes that failed: the photograph keeps its older."""
    return status == FAILED and image_id in living and is_passing(message)


def is_among(column: pa.ChunkedArray, values: Set[str]) -> pa.ChunkedArray:
    """Return which texts of a column are among some values."""
    return pc.is_in(column, pa.array(sorted(values), pa.string()))
