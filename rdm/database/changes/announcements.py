"""The last announced version of a database, so that a killed run's event is sent by the next run.

Patch ids are never reused and deletions never undone, so two numbers say whether there is news.
The tables of a query set and a compaction make versions, too, and are no news.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from rdm.config import Record
from rdm.database.contract import ANNOUNCED
from rdm.errors import StorageError
from rdm.storage import Folder, Version, VersionStore


class Announcement(Record):
    """`announced.json`: the state of a database at its last announcement."""

    version: int
    next_patch_id: int
    num_deleted: int


@dataclass(frozen=True)
class News:
    """Changes that were not announced yet: patches that came and went up to the current version."""

    since: int
    """The version announced last; 0: a compaction has dropped it, so it cannot be read."""
    version: int
    patches_added: int
    patches_removed: int


def announce(folder: Folder, version: Version | None = None) -> None:
    """Record a version, by default the current one, as announced."""
    version = version or VersionStore(folder).require()
    folder.write_record(ANNOUNCED, _state(version))


def ensure_announced(folder: Folder) -> None:
    """Set the baseline of the first announcement: the version before an update."""
    if not folder.exists(ANNOUNCED):
        announce(folder)


def news(folder: Folder) -> News | None:
    """Return what came and went since the last announcement; None if nothing did.

    None also for a database that never announced anything.

    Raises:
        DatabaseError: the root is no database.
        StorageError: the record is damaged.
    """
    store = VersionStore(folder)
    version = store.require()
    if not folder.exists(ANNOUNCED):
        return None

    # Two counts that only grow: equal ones mean that no patch came or went.
    before, now = _noted(folder), _state(version)
    added, deleted = now.next_patch_id - before.next_patch_id, now.num_deleted - before.num_deleted
    if not added and not deleted:
        return None

    since = before.version if before.version in store.numbers() else 0
    return News(since, version.number, added, deleted)


def _noted(folder: Folder) -> Announcement:
    """Read the last announcement."""
    try:
        return Announcement.model_validate(folder.read_json(ANNOUNCED))
    except ValidationError as error:
        raise StorageError(
            "the note of what was announced is damaged",
            where=folder.describe(ANNOUNCED),
            fix="delete it: the next change is announced again",
        ) from error


def _state(version: Version) -> Announcement:
    return Announcement(
        version=version.number,
        next_patch_id=version.next_patch_id,
        num_deleted=len(version.tombstones),
    )
