"""What an update changes: the source compared with the version before, and what was asked to be removed."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.database.changes.conditions import matching_rows
from rdm.sources.causes import is_passing
from rdm.sources.ledger import FAILED, SUCCESS
from rdm.sources.source import fingerprint, make_listing
from rdm.storage import Box, Folder, Version

DELETED = "deleted"  # status of a ledger row whose photograph a compaction removed from the disk


@dataclass(frozen=True)
class Removal:
    """What is asked to go for good: photographs by id or by a condition on their ledger rows, and single patches."""

    image_ids: frozenset[str] = frozenset()
    patch_ids: frozenset[int] = frozenset()
    where: str = ""


def known_etags(ledger: pa.Table, living: set[str], *, retry_failed: bool = False) -> dict[str, str]:
    """Return the etag of each photograph that need not be stored again while its etag stays.

    The last row of an id counts. A photograph that was deleted and is in the source again is new. One whose newer bytes
    could not be had for a passing cause keeps the etag of those that are stored, so that it is asked for again.

    A stored photograph that never had a patch is known: filters left it out.

    Args:
        ledger: rows with `image_id`, `etag`, `status`, `error_message`, and `was_cut`: whether there ever was a patch.
        living: the photographs that have living patches.
        retry_failed: leave out those that failed by a cause that may have passed, such as a server's error.
    """
    known: dict[str, str] = {}
    for row in ledger.select(["image_id", "etag", "status", "error_message", "was_cut"]).to_pylist():
        had_patches = row["status"] == DELETED or (row["status"] == SUCCESS and row["was_cut"])
        lost = had_patches and row["image_id"] not in living
        if _waits(row, living):
            continue
        if lost or (retry_failed and row["status"] == FAILED and is_passing(row["error_message"])):
            known.pop(row["image_id"], None)
        else:
            known[row["image_id"]] = row["etag"]
    return known


def _waits(row: Mapping[str, Any], living: set[str]) -> bool:
    """Return whether a row tells of newer bytes that could not be had yet: the photograph keeps its older ones."""
    return row["status"] == FAILED and row["image_id"] in living and is_passing(row["error_message"])


class Changes:
    """The difference between a source's listing and a version, with removals. Reads when asked, and once.

    Without a listing the source is left alone: it counts as one that lists what the version holds, and nothing is new.
    """

    def __init__(
        self,
        folder: Folder,
        parent: Version | None,
        source: pa.Table | None,
        removal: Removal,
        *,
        retry_failed: bool = False,
    ) -> None:
        self.folder = folder
        self.parent = parent
        self.removal = removal
        self.retry_failed = retry_failed
        self._source = source
        self._superseded: set[str] = set()
        self._unavailable: set[str] = set()

    @cached_property
    def source(self) -> pa.Table:
        """Everything that the source has, or counts as having."""
        if self._source is not None:
            return self._source
        rows = [self._last_rows[image_id] for image_id in sorted(self._held_images)]
        return make_listing([{"image_id": row["image_id"], "location": "", "etag": row["etag"]} for row in rows])

    @cached_property
    def listing(self) -> pa.Table:
        """The photographs of the source, without those that were ever removed on request."""
        return self.source.filter(pc.invert(_is_in(self.source["image_id"], self.removed_images)))

    @cached_property
    def removed_images(self) -> frozenset[str]:
        """All photographs that were removed on request, now or before.

        A photograph whose last patch is removed counts: an update would bring it back otherwise. So does one of the
        same bytes under another id: it is the same picture.
        """
        named = self.removal.image_ids | self._selected_images | self._emptied_images
        before = frozenset(self.parent.deleted_image_ids if self.parent else ())
        return named | self._copies_of(named - before) | before

    @cached_property
    def removed_digests(self) -> frozenset[str]:
        """The SHA-256 of the photographs that were removed on request: equal bytes are refused under any id."""
        before = frozenset(self.parent.deleted_sha256 if self.parent else ())
        return before.union(self._digests(self.removed_images).values())

    @cached_property
    def removed_patches(self) -> dict[str, list[Box]]:
        """The boxes of all patches that were removed on request, now or before, of photographs that were not."""
        before = self.parent.deleted_patches if self.parent else {}
        boxes = {image_id: set(known) for image_id, known in before.items()}
        asked = pa.array(sorted(self.removal.patch_ids), pa.int64())
        for part in self.parent.parts_of("patches") if self.parent and len(asked) else []:
            table = self.folder.read_table(part.path, ["patch_id", "image_id", "x0", "y0", "x1", "y1"])
            for row in table.filter(pc.is_in(table["patch_id"], asked)).to_pylist():
                boxes.setdefault(row["image_id"], set()).add((row["x0"], row["y0"], row["x1"], row["y1"]))
        gone = self.removed_images | {""}  # a compaction has emptied the rows of earlier removals
        return {image_id: sorted(boxes[image_id]) for image_id in sorted(boxes) if image_id not in gone}

    @cached_property
    def new_rows(self) -> pa.Table:
        """The rows of the listing that must be stored: new photographs, and replaced ones.

        So is a near-duplicate whose look-alike goes: what is left may keep it.
        """
        if self._source is None:
            return self.listing.slice(0, 0)
        known = known_etags(self._ledger, set(self.living_images), retry_failed=self.retry_failed)
        rows = dict(zip(self.listing["image_id"].to_pylist(), self.listing["etag"].to_pylist(), strict=True))
        for image_id, (duplicate_of, etag) in self.left_out.items():  # by id, so each comes after what it looks like
            if duplicate_of in self.removed_images or known.get(duplicate_of) == rows.get(duplicate_of, ""):
                known[image_id] = etag
            else:
                known.pop(image_id, None)
        is_new = [known.get(image_id) != etag for image_id, etag in rows.items()]
        return self.listing.filter(pa.array(is_new, pa.bool_()))

    @cached_property
    def left_out(self) -> dict[str, tuple[str, str]]:
        """The near-duplicates that the version before leaves out, by id: what each looks like, and its own etag."""
        parts = self.parent.parts_of("duplicates") if self.parent else []
        rows = [row for part in parts for row in self.folder.read_table(part.path).to_pylist()]
        return {row["image_id"]: (row["duplicate_of"], row["etag"]) for row in rows}

    @cached_property
    def staying_hashes(self) -> dict[str, str]:
        """The perceptual hashes of the stored photographs that stay, and of those that were removed on request.

        What looks like a photograph whose removal was asked for stays out, too.
        """
        new = set(self.new_rows["image_id"].to_pylist())
        stays = (set(self.listing["image_id"].to_pylist()) - new) | self._kept | self.removed_images
        return {
            image_id: row["phash"] for image_id, row in self._last_rows.items() if image_id in stays and row["phash"]
        }

    def leave_out(self, image_ids: set[str]) -> None:
        """Let photographs go that look like one of the new ones; call it before the tombstones are asked for."""
        self._superseded = image_ids & set(self.living_images)
        self._forget("newly_dead", "tombstones")

    def keep(self, image_ids: set[str]) -> None:
        """Keep the older bytes of replaced photographs; call it before the tombstones are asked for.

        Args:
            image_ids: the photographs that could not be had, new ones too, for causes that may pass.
        """
        self._unavailable = image_ids
        self._forget("gone_images", "newly_dead", "tombstones", "staying_hashes")

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    @property
    def _kept(self) -> set[str]:
        return self._unavailable & set(self.living_images)

    @property
    def taken(self) -> pa.Table:
        """The listing with the etags of what is stored: of a photograph that was kept, the etag of its older bytes."""
        if not self._kept:
            return self.listing
        held = {image_id: self._last_rows[image_id]["etag"] for image_id in self._kept}
        pairs = zip(self.listing["image_id"].to_pylist(), self.listing["etag"].to_pylist(), strict=True)
        etags = pa.array([held.get(image_id, etag) for image_id, etag in pairs], pa.string())
        return self.listing.set_column(self.listing.column_names.index("etag"), "etag", etags)

    @cached_property
    def living_images(self) -> list[str]:
        """The photographs that the version before has living patches of."""
        return self._patches["image_id"].unique().to_pylist()

    @cached_property
    def _held_images(self) -> set[str]:
        """The photographs that the version before holds: with living patches, or left out or emptied by filters."""
        held = set(self.living_images) | set(self.left_out)
        rows = (self._ledger[name].to_pylist() for name in ("image_id", "status", "was_cut"))
        return held.union(
            image_id for image_id, status, was_cut in zip(*rows, strict=True) if status == SUCCESS and not was_cut
        )

    @cached_property
    def vanished_images(self) -> set[str]:
        """The photographs with living patches that the source has no more, without those removed on request."""
        return set(self.living_images) - set(self.source["image_id"].to_pylist()) - self.removed_images

    @cached_property
    def gone_images(self) -> set[str]:
        """The photographs whose living patches all go: vanished, replaced, or removed."""
        living = set(self.living_images)
        replaced = living & set(self.new_rows["image_id"].to_pylist()) - self._kept
        return (living - set(self.listing["image_id"].to_pylist())) | replaced

    @cached_property
    def newly_dead(self) -> NDArray[np.int64]:
        """The sorted ids of the patches that go now."""
        table = self._patches
        goes = pc.or_(
            _is_in(table["image_id"], self.gone_images | self._superseded),
            pc.is_in(table["patch_id"], pa.array(sorted(self.removal.patch_ids), pa.int64())),
        )
        return np.sort(table.filter(goes)["patch_id"].to_numpy())

    @cached_property
    def tombstones(self) -> NDArray[np.int64]:
        """The sorted ids of all patches that are deleted after this change."""
        before = np.array(self.parent.tombstones if self.parent else [], np.int64)
        return np.union1d(before, self.newly_dead)

    @property
    def is_empty(self) -> bool:
        """Whether the version before already holds exactly this.

        Photographs that were asked for again, and could not be had again, are nothing new.
        """
        if self.parent is None or self.is_known_source:
            return self.parent is not None
        if not self.removed_images <= set(self.parent.deleted_image_ids):
            return False
        if self.removed_patches != self.parent.deleted_patches:
            return False
        return not self._news and len(self.newly_dead) == 0

    @property
    def _news(self) -> set[str]:
        """The photographs of which the ledgers will tell something that they do not tell yet."""
        new, kept = self._new_etags, self._kept
        stay_out = {name for name, (like, etag) in self.left_out.items() if like in kept and new.get(name) == etag}
        return set(new) - self.unavailable_again - stay_out

    @property
    def unavailable_again(self) -> set[str]:
        """Those of the photographs that could not be had of which the ledgers tell that already."""
        if not self._unavailable:
            return set()
        told: dict[str, str | None] = {}
        for row in self._ledger.filter(_is_in(self._ledger["image_id"], self._unavailable)).to_pylist():
            is_told = row["status"] == FAILED and is_passing(row["error_message"])
            told[row["image_id"]] = row["etag"] if is_told else None
        new = self._new_etags
        return {name for name in self._unavailable if told.get(name) == new[name]}

    @property
    def _new_etags(self) -> dict[str, str]:
        return dict(zip(self.new_rows["image_id"].to_pylist(), self.new_rows["etag"].to_pylist(), strict=True))

    @cached_property
    def is_known_source(self) -> bool:
        """Whether the source has the fingerprint that the version before was made from, and nothing else is asked.

        Then nothing changed, whatever the ledgers hold, and they need not be read.
        """
        asks = self.retry_failed or self.removal != Removal()
        return self.parent is not None and not asks and fingerprint(self.listing) == self.parent.source_fingerprint

    def counts(self) -> dict[str, int]:
        """Return the size of the change: photographs in the source, new ones, those that go, and their patches."""
        if self.is_known_source:
            return {"photographs": self.listing.num_rows, "new": 0, "gone": 0, "gone_patches": 0}
        return {
            "photographs": self.listing.num_rows,
            "new": self.new_rows.num_rows,
            "gone": len(self.gone_images),
            "gone_patches": len(self.newly_dead),
        }

    def unknown_images(self) -> list[str]:
        """Return those photographs whose removal was asked for that the database never had."""
        if not self.removal.image_ids:
            return []
        return sorted(self.removal.image_ids - set(self._ledger["image_id"].to_pylist()))

    def unknown_patches(self) -> list[int]:
        """Return those patches whose removal was asked for that the database never had."""
        end = self.parent.next_patch_id if self.parent else 0
        return sorted(patch_id for patch_id in self.removal.patch_ids if not 0 <= patch_id < end)

    @cached_property
    def _ledger(self) -> pa.Table:
        columns = ["image_id", "etag", "status", "error_message", "phash", "sha256"]
        empty = {name: pa.array([], pa.string()) for name in columns}
        tables = [pa.table({**empty, "was_cut": pa.array([], pa.bool_())})]
        if self.parent is not None:
            for ledger, patches in zip(self.parent.parts_of("ledger"), self.parent.parts_of("patches"), strict=True):
                table = self.folder.read_table(ledger.path)
                if not self.removal.where:
                    table = table.select(columns)
                cut = self.folder.read_table(patches.path, ["image_row"])["image_row"]
                rows = pa.array(np.arange(table.num_rows, dtype=np.int32))
                tables.append(table.append_column("was_cut", pc.is_in(rows, cut.combine_chunks())))
        return pa.concat_tables(tables, promote_options="default")

    @cached_property
    def _last_rows(self) -> dict[str, dict[str, Any]]:
        """The last row of each photograph that tells of what is stored, with its `position` in the ledgers."""
        names, living = ["image_id", "etag", "status", "error_message", "phash"], set(self.living_images)
        rows = enumerate(self._ledger.select(names).to_pylist())
        return {row["image_id"]: {**row, "position": number} for number, row in rows if not _waits(row, living)}

    def _digests(self, image_ids: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of the bytes last stored of each photograph that has one."""
        rows = self._ledger.filter(_is_in(self._ledger["image_id"], frozenset(image_ids)))
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        return dict(zip(rows["image_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))

    def _copies_of(self, image_ids: frozenset[str]) -> frozenset[str]:
        """Return the photographs whose bytes are those of one of these."""
        if not image_ids:
            return image_ids
        digests = frozenset(self._digests(image_ids).values())
        alike = self._ledger.filter(_is_in(self._ledger["sha256"], digests))["image_id"].to_pylist()
        return frozenset(image_id for image_id, digest in self._digests(alike).items() if digest in digests)

    @cached_property
    def _patches(self) -> pa.Table:
        """`patch_id` and `image_id` of the living patches of the version before."""
        tombstones = np.array(self.parent.tombstones if self.parent else [], np.int64)
        tables = [pa.table({"patch_id": pa.array([], pa.int64()), "image_id": pa.array([], pa.string())})]
        for part in self.parent.parts_of("patches") if self.parent else []:
            table = self.folder.read_table(part.path, ["patch_id", "image_id"])
            tables.append(table.filter(pa.array(np.isin(table["patch_id"].to_numpy(), tombstones, invert=True))))
        return pa.concat_tables(tables)

    @cached_property
    def _selected_images(self) -> set[str]:
        """The photographs for whose ledger row the condition holds: living ones, and those that filters left out."""
        if not self.removal.where:
            return set()
        rows = [self._last_rows[image_id]["position"] for image_id in self._held_images]
        return set(matching_rows(self._ledger.take(sorted(rows)), self.removal.where)["image_id"].to_pylist())

    @cached_property
    def _emptied_images(self) -> set[str]:
        """The photographs all of whose living patches are asked to go one by one."""
        if not self.removal.patch_ids:
            return set()
        asked = pc.is_in(self._patches["patch_id"], pa.array(sorted(self.removal.patch_ids), pa.int64()))
        touched = set(self._patches.filter(asked)["image_id"].to_pylist())
        return touched - set(self._patches.filter(pc.invert(asked))["image_id"].to_pylist())


def _is_in(column: pa.ChunkedArray, values: set[str] | frozenset[str]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(sorted(values), pa.string()))
