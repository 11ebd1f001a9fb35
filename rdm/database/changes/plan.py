"""The difference of a source and a version, and the plan of an update from it, as values."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.database.changes.holdings import Holdings, is_among
from rdm.database.contract import CORNERS
from rdm.sources.causes import is_passing
from rdm.sources.ledger import FAILED
from rdm.sources.source import fingerprint, make_listing
from rdm.storage import Box


@dataclass(frozen=True)
class Removal:
    """A request to remove for good: photographs by id or condition, and single patches."""

    image_ids: frozenset[str] = frozenset()
    patch_ids: frozenset[int] = frozenset()
    where: str = ""


@dataclass(frozen=True, eq=False)
class SourceDiff:
    """The difference between a source's listing and what a version holds, with removals.

    Args:
        held: the version; of none, everything in the source is new.
        found: the source's listing. Without one the source is left alone: it counts as listing what
            the version holds, and nothing is new.
        removal: the request to remove for good.
        retry_failed: request again what failed by a cause that may have passed.
    """

    held: Holdings
    found: pa.Table | None
    removal: Removal = Removal()
    retry_failed: bool = False

    @cached_property
    def source(self) -> pa.Table:
        """Everything that the source has, or counts as having."""
        if self.found is not None:
            return self.found
        rows = [self.held.last_rows[image_id] for image_id in sorted(self.held.held_images)]
        return make_listing(
            [{"image_id": row.image_id, "location": "", "etag": row.etag} for row in rows]
        )

    @cached_property
    def listing(self) -> pa.Table:
        """The photographs of the source, without those that were ever removed on request."""
        return self.source.filter(pc.invert(is_among(self.source["image_id"], self.removed_images)))

    @cached_property
    def removed_images(self) -> frozenset[str]:
        """All photographs that were removed on request, now or before.

        A photograph whose last patch is removed counts, as an update would bring it back otherwise;
        so does one of the same bytes under another id, as it is the same picture.
        """
        # By id, by the condition, or because every living patch was named.
        version, removal = self.held.version, self.removal
        selected = self.held.matching(removal.where) if removal.where else frozenset()
        named = removal.image_ids | selected | self._emptied_images()
        before = frozenset(version.deleted_image_ids if version else ())

        # Copies of photographs that were removed before went with them.
        return named | self.held.copies_of(named - before) | before

    @cached_property
    def removed_digests(self) -> frozenset[str]:
        """The SHA-256 of removed photographs: equal bytes are refused under any id."""
        version = self.held.version
        before = frozenset(version.deleted_sha256 if version else ())
        return before.union(self.held.digests(self.removed_images).values())

    @cached_property
    def removed_patches(self) -> dict[str, list[Box]]:
        """The boxes of all patches removed on request, of photographs that were not removed."""
        version, asked = self.held.version, pa.array(sorted(self.removal.patch_ids), pa.int64())

        # Boxes of earlier requests.
        boxes = {
            image_id: set(known)
            for image_id, known in (version.deleted_patches if version else {}).items()
        }

        # Boxes of the patches that are named now.
        for part in version.parts_of("patches") if version and len(asked) else []:
            table = self.held.folder.read_table(part.path, ["patch_id", "image_id", *CORNERS])
            for row in table.filter(pc.is_in(table["patch_id"], asked)).to_pylist():
                boxes.setdefault(row["image_id"], set()).add(
                    (row["x0"], row["y0"], row["x1"], row["y1"])
                )

        # A photograph that is removed whole needs no boxes; "" is a row that a compaction emptied.
        gone = self.removed_images | {""}
        return {
            image_id: sorted(boxes[image_id]) for image_id in sorted(boxes) if image_id not in gone
        }

    @cached_property
    def new_rows(self) -> pa.Table:
        """The rows of the listing that must be stored: new photographs, and replaced ones.

        A near-duplicate is new again when its look-alike goes: then it may stay.
        """
        if self.found is None:
            return self.listing.slice(0, 0)

        known = self.held.known_etags(retry_failed=self.retry_failed)
        etags = etags_of(self.listing)

        # In the order of ids, so each comes after the photograph that it looks like.
        for image_id, left_out in self.held.left_out.items():
            like = left_out.duplicate_of
            if like in self.removed_images or known.get(like) == etags.get(like, ""):
                known[image_id] = left_out.etag
            else:
                known.pop(image_id, None)

        is_new = [known.get(image_id) != etag for image_id, etag in etags.items()]
        return self.listing.filter(pa.array(is_new, pa.bool_()))

    @cached_property
    def new_etags(self) -> dict[str, str]:
        """The etag of each photograph that must be stored."""
        return etags_of(self.new_rows)

    @cached_property
    def vanished_images(self) -> frozenset[str]:
        """Photographs with living patches that left the source, and were not removed on request."""
        return (
            self.held.living_images - set(self.source["image_id"].to_pylist()) - self.removed_images
        )

    @cached_property
    def is_known_source(self) -> bool:
        """Whether the source is as the version recorded it, and nothing else is requested.

        Then nothing changed, and the ledgers need not be read.
        """
        version = self.held.version
        if version is None or self.retry_failed or self.removal != Removal():
            return False
        return fingerprint(self.listing) == version.source_fingerprint

    def _emptied_images(self) -> frozenset[str]:
        """Return the photographs all of whose living patches are asked to go one by one."""
        if not self.removal.patch_ids:
            return frozenset()

        patches = self.held.patches
        asked = pc.is_in(patches["patch_id"], pa.array(sorted(self.removal.patch_ids), pa.int64()))
        # Photographs with a named patch, less those that keep another one.
        touched = frozenset(patches.filter(asked)["image_id"].to_pylist())
        return touched - set(patches.filter(pc.invert(asked))["image_id"].to_pylist())


@dataclass(frozen=True, eq=False)
class UpdatePlan:
    """The additions and deletions of an update. A stage that learns more returns another plan.

    Args:
        diff: the source against the version.
        unavailable: photographs that failed for causes that may pass, new and replaced ones; of a
            replaced one the older bytes are kept.
        near_duplicates: photographs that are left out because they resemble another one.
    """

    diff: SourceDiff
    unavailable: frozenset[str] = frozenset()
    near_duplicates: frozenset[str] = frozenset()

    def after_ingest(self, unavailable: Set[str]) -> UpdatePlan:
        """Return the plan with the photographs that could not be fetched."""
        return replace(self, unavailable=frozenset(unavailable))

    def after_comparison(self, near_duplicates: Set[str]) -> UpdatePlan:
        """Return the plan with the photographs that resemble another one."""
        return replace(self, near_duplicates=frozenset(near_duplicates))

    @property
    def kept(self) -> frozenset[str]:
        """The replaced photographs that keep their older bytes."""
        return self.unavailable & self.diff.held.living_images

    @cached_property
    def taken(self) -> pa.Table:
        """The listing with the etags of the stored bytes: the older etag where these were kept."""
        listing = self.diff.listing
        if not self.kept:
            return listing

        held = {image_id: self.diff.held.last_rows[image_id].etag for image_id in self.kept}
        etags = [held.get(image_id, etag) for image_id, etag in etags_of(listing).items()]
        return listing.set_column(
            listing.column_names.index("etag"), "etag", pa.array(etags, pa.string())
        )

    @cached_property
    def staying_hashes(self) -> dict[str, str]:
        """Perceptual hashes of the stored photographs that stay, and of those removed on request.

        A photograph that looks like a removed one stays out, too.
        """
        diff = self.diff
        unchanged = set(diff.listing["image_id"].to_pylist()) - diff.new_etags.keys()
        stays = unchanged | self.kept | diff.removed_images
        rows = diff.held.last_rows.items()
        return {image_id: row.phash for image_id, row in rows if image_id in stays and row.phash}

    @cached_property
    def gone_images(self) -> frozenset[str]:
        """The photographs whose living patches all go: vanished, replaced, or removed."""
        # Replaced photographs go with their older patches, unless the new bytes failed.
        living = self.diff.held.living_images
        replaced = (living & self.diff.new_etags.keys()) - self.kept
        return (living - set(self.diff.listing["image_id"].to_pylist())) | replaced

    @cached_property
    def newly_dead(self) -> NDArray[np.int64]:
        """The sorted ids of the patches that go now."""
        table = self.diff.held.patches
        goes = pc.or_(
            is_among(table["image_id"], self.gone_images | self.near_duplicates),
            pc.is_in(table["patch_id"], pa.array(sorted(self.diff.removal.patch_ids), pa.int64())),
        )
        return np.sort(table.filter(goes)["patch_id"].to_numpy())

    @cached_property
    def tombstones(self) -> NDArray[np.int64]:
        """The sorted ids of all patches that are deleted after this change."""
        version = self.diff.held.version
        before = version.tombstone_ids() if version else np.zeros(0, np.int64)
        return np.union1d(before, self.newly_dead)

    @cached_property
    def is_empty(self) -> bool:
        """Whether the version already holds exactly this.

        Photographs that were requested again, and failed again, are nothing new.
        """
        version = self.diff.held.version
        # A known source needs no look at the ledgers.
        if version is None or self.diff.is_known_source:
            return version is not None

        # Removals that the version does not record yet are a change, even without living patches.
        if not self.diff.removed_images <= set(version.deleted_image_ids):
            return False
        if self.diff.removed_patches != version.deleted_patches:
            return False

        return not self._untold() and len(self.newly_dead) == 0

    @cached_property
    def unavailable_again(self) -> frozenset[str]:
        """The unavailable photographs whose failure is already in the ledgers."""
        if not self.unavailable:
            return frozenset()
        ledger = self.diff.held.ledger
        # The last row of each decides; None if it is no passing failure.
        failed: dict[str, str | None] = {}
        for row in ledger.filter(is_among(ledger["image_id"], self.unavailable)).to_pylist():
            passing = row["status"] == FAILED and is_passing(row["error_message"])
            failed[row["image_id"]] = row["etag"] if passing else None

        return frozenset(
            name for name in self.unavailable if failed.get(name) == self.diff.new_etags[name]
        )

    def _untold(self) -> set[str]:
        """Return the photographs of which the ledgers will say something new."""
        # A near-duplicate of a photograph that was kept stays out, as before.
        new, left_out = self.diff.new_etags, self.diff.held.left_out
        stay_out = {
            name
            for name, row in left_out.items()
            if row.duplicate_of in self.kept and new.get(name) == row.etag
        }

        return set(new) - self.unavailable_again - stay_out


def etags_of(listing: pa.Table) -> dict[str, str]:
    """Return the etag of each photograph of a listing, in its order."""
    return dict(zip(listing["image_id"].to_pylist(), listing["etag"].to_pylist(), strict=True))
