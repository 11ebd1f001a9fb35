"""Whether the photographs that a picture was drawn from are still in their databases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from rdm.config import Record
from rdm.database import RetrievalDatabase
from rdm.database.reader import PatchRecord
from rdm.sampling.recipe.record import Credit, DatabaseReference, SampleRecord
from rdm.sampling.recorder import database_name, database_reference
from rdm.storage import Version

NeighborState = Literal["there", "removed", "deleted", "missing", "another", "unknown"]
"""there: the same patch of the same photograph. removed: on request, for good. deleted: with its
photograph or by a condition. missing: no such patch. another: a patch of something else. unknown:
its database is not given."""


class StatedNeighbor(Record):
    """A neighbor of a picture, and whether its photograph is still there."""

    credit: Credit
    state: NeighborState


def neighbor_states(
    record: SampleRecord, databases: Sequence[RetrievalDatabase]
) -> list[StatedNeighbor]:
    """Return the state of each neighbor of a picture, those of its negative last.

    Args:
        record: of the picture.
        databases: those that it was drawn from, at any version.
    """
    states: list[NeighborState] = ["unknown"] * len(record.looked_at)
    for name, database in named_databases(record.databases, databases).items():
        places = [n for n, one in enumerate(record.looked_at) if one.database == name]
        found = _states_in(database, [record.looked_at[place] for place in places])
        for place, state in zip(places, found, strict=True):
            states[place] = state
    pairs = zip(record.looked_at, states, strict=True)
    return [StatedNeighbor(credit=one, state=state) for one, state in pairs]


def named_databases(
    references: Sequence[DatabaseReference], databases: Iterable[RetrievalDatabase]
) -> dict[str, RetrievalDatabase]:
    """Return databases by the names that a recipe has for them, as far as they are given.

    A database is found by its digest, then by its name; where a recipe names one and one is given,
    it is that one, because folders are moved and renamed.
    """
    given = list(databases)
    digests = {database_reference(database).digest: database for database in given}
    names = {database_name(database): database for database in given}
    found = {
        one.name: database
        for one in references
        if (database := digests.get(one.digest) or names.get(one.name)) is not None
    }
    if not found and len(references) == len(given) == 1:
        return {references[0].name: given[0]}
    return found


def _states_in(database: RetrievalDatabase, credits: Sequence[Credit]) -> list[NeighborState]:
    """Return the states of neighbors of one database."""
    early: list[NeighborState | None] = [
        _state_of_version(database.version, credit) for credit in credits
    ]
    left = [one for one, state in zip(credits, early, strict=True) if state is None]
    records = iter(database.records(np.array([one.patch_id for one in left], np.int64)))
    found: list[NeighborState] = []
    for credit, state in zip(credits, early, strict=True):
        found.append(_state_of_record(next(records), credit) if state is None else state)
    return found


def _state_of_version(version: Version, credit: Credit) -> NeighborState | None:
    """Return a neighbor's state where the version decides it without its records."""
    if credit.sha256 in version.deleted_sha256 or credit.image_id in version.deleted_image_ids:
        return "removed"
    # single patches are remembered by their boxes
    if credit.box in map(tuple, version.deleted_patches.get(credit.image_id, ())):
        return "removed"
    if not 0 <= credit.patch_id < version.next_patch_id:
        return "missing"
    return "deleted" if credit.patch_id in version.tombstones else None


def _state_of_record(record: PatchRecord, credit: Credit) -> NeighborState:
    same = (record.image_id, record.sha256, record.box)
    return "there" if same == (credit.image_id, credit.sha256, credit.box) else "another"
