"""What others were told of a database: news that a killed run did not tell is told by the next one.

Patch ids are never reused and deletions never undone, so two numbers say whether there are news;
the tables of a query set and a compaction, which make versions too, are none.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from rdm.config import Record
from rdm.database.contract import ANNOUNCED
from rdm.errors import StorageError
from rdm.storage import Folder, Version, VersionStore


class Announcement(Record):
    """`announced.json`: the state of a database that was announced last."""

    version: int
    next_patch_id: int
    num_deleted: int


@dataclass(frozen=True)
class News:
    """What was not announced yet: how many patches came and went up to the current version."""

    since: int
    """The version that was announced last; 0: it cannot be read any more, since a compaction
    dropped it."""
    version: int
    patches_added: int
    patches_removed: int


def announce(folder: Folder, version: Version | None = None) -> None:
    """Note a version, by default the current one, as announced."""
    version = version or VersionStore(folder).require()
    folder.write_record(ANNOUNCED, _state(version))


def ensure_announced(folder: Folder) -> None:
    """Note the current version as announced where none ever was; before an update, whose news are
    then told."""
    if not folder.exists(ANNOUNCED):
        announce(folder)


def news(folder: Folder) -> News | None:
    """Return what came and went since the last announcement; None: nothing did, or nothing was ever
    announced.

    Raises:
        DatabaseError: the root is no database.
        StorageError: the note is damaged.
    """
    store = VersionStore(folder)
    version = store.require()
    if not folder.exists(ANNOUNCED):
        return None
    before, now = _noted(folder), _state(version)
    added, deleted = now.next_patch_id - before.next_patch_id, now.num_deleted - before.num_deleted
    if not added and not deleted:
        return None
    since = before.version if before.version in store.numbers() else 0
    return News(since, version.number, added, deleted)


def _noted(folder: Folder) -> Announcement:
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
