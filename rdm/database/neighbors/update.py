"""Bring neighbor tables up to date with the patches of a new version, shard by shard."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np

from rdm.compute.pool import Pool
from rdm.config import Record, digest_json
from rdm.database.contract import SEARCHED_KINDS, neighbor_paths, queryset_path
from rdm.database.neighbors.exclusion import require_full
from rdm.database.neighbors.lookup import exclusion_rule, look_up
from rdm.database.neighbors.repair import repair_neighbors
from rdm.database.neighbors.table import (
    NeighborConfig,
    NeighborTable,
    QuerySetFacts,
    TableSums,
    build_command,
    lookup_sums,
    stored_lookup,
    with_lookup,
)
from rdm.database.reader import RetrievalDatabase
from rdm.errors import DatabaseError
from rdm.storage import Folder, Part, ShardWork, Version, VersionStore, resumable


@dataclass(frozen=True)
class RepairTask:
    """One shard of a table to repair for the draft; the output is written only if it changes."""

    root: str
    name: str
    stem: str
    inputs: tuple[str, str]
    output: str
    config: NeighborConfig
    first_added: int
    key: str


class RepairStats(TableSums):
    """A shard's repair: whether a neighbor changed, and the rows searched anew."""

    changed: bool
    searched: int


class TableRepair(Record):
    """The repair of a table: its rows, changed shards, and rows searched anew."""

    rows: int
    changed_shards: int
    searched_rows: int


def repair_shard(task: RepairTask) -> RepairStats:
    """Write a shard's table as a new lookup in the draft would; return whether it changed.

    An exact table costs what changed; one that was looked up in the index is looked up again.
    """
    folder = Folder(task.root)

    def repair() -> tuple[list[str], RepairStats]:
        stats = _repair(folder, task)
        return [task.output] if stats.changed else [], stats

    return resumable(
        ShardWork(folder, f"repair-{task.name}", task.stem, task.key, RepairStats), repair
    )


def _repair(folder: Folder, task: RepairTask) -> RepairStats:
    """Repair or repeat a shard's lookup, and write it if it differs."""
    database = RetrievalDatabase(folder, VersionStore(folder).draft())
    table = folder.read_table(task.inputs[0])
    queries = np.asarray(folder.read_array(task.inputs[1]))
    stored = stored_lookup(table, task.config.k_stored)

    # What the index found is no proof of what it did not: only an exact lookup can be repaired.
    if task.config.exact:
        rule = exclusion_rule(database, table, task.config)
        found, searched = repair_neighbors(
            queries, stored, database.parts, task.first_added, database.tombstones, rule
        )
    else:
        found, searched = look_up(database, queries, table, task.config), len(queries)

    require_full(table["key"].to_pylist(), found, folder.describe(f"neighbors/{task.name}"))
    # An unchanged shard keeps its file: the new version names the old one.
    changed = not found.equals(stored)
    if changed:
        folder.write_table(task.output, with_lookup(table, found, task.config))
    return RepairStats(changed=changed, searched=searched, **dict(lookup_sums(found)))


def repair_tables(
    folder: Folder, parent: Version, draft: Version, pool: Pool
) -> tuple[list[Part], dict[str, TableRepair]]:
    """Repair every table of the parent version for the draft.

    Files that need no change are carried over.

    Returns:
        The tables' parts in the draft, and counts by query set.

    Raises:
        DatabaseError: a table stores more neighbors than patches are left.
    """
    parts: list[Part] = []
    counts: dict[str, TableRepair] = {}
    for name in NeighborTable.names(folder, parent):
        table = NeighborTable(folder, name, parent)
        # Every row must have k neighbors: ask the user to shrink the table, or to drop it, first.
        k = table.config.k_stored
        if k > draft.num_live_patches:
            fewer = table.config.model_copy(update={"k_stored": draft.num_live_patches})
            raise DatabaseError(
                f"the neighbors of {name!r} are {k} per crop, but only "
                f"{draft.num_live_patches} patches would be left",
                where=folder.url,
                fix=f"first: {build_command(folder.url, name, fewer)}; or, where the table "
                "is not needed any more: "
                + shlex.join(["rdm", "neighbors", "drop", "--root", folder.url, "--name", name]),
            )

        tasks = [_task(folder, table, stem, parent, draft) for stem in table.info.stems]
        finished = dict(pool.map(repair_shard, tasks, stage="repair", names=table.info.stems))
        # By number, not in the order in which they finished.
        stats = [finished[number] for number in range(len(tasks))]

        parts += _parts(folder, table, tasks, stats, draft.number)
        counts[name] = TableRepair(
            rows=table.info.num_queries,
            changed_shards=sum(shard.changed for shard in stats),
            searched_rows=sum(shard.searched for shard in stats),
        )
    return parts, counts


def _task(
    folder: Folder, table: NeighborTable, stem: str, parent: Version, draft: Version
) -> RepairTask:
    # The key: the stored table, and everything in the draft that decides a lookup.
    inputs = table.paths(stem)
    output = neighbor_paths(table.name, draft.number, stem)[0]
    searched = [part.sha256 for part in draft.parts if part.kind in SEARCHED_KINDS]
    before = [part.sha256 for part in table.parts if part.path in inputs]
    key = digest_json(
        [table.config.model_dump(mode="json"), before, searched, draft.tombstones, output]
    )

    return RepairTask(
        folder.url, table.name, stem, inputs, output, table.config, parent.next_patch_id, key
    )


def _parts(
    folder: Folder,
    table: NeighborTable,
    tasks: list[RepairTask],
    stats: list[RepairStats],
    number: int,
) -> list[Part]:
    """Return a table's parts in the draft: of shards that changed the new file, else the old."""
    store = VersionStore(folder)
    by_path = {part.path: part for part in table.parts}

    shards = [
        store.describe_part("neighbors", task.output, by_path[task.inputs[0]].num_rows)
        if shard.changed
        else by_path[task.inputs[0]]
        for task, shard in zip(tasks, stats, strict=True)
    ]

    # Query embeddings never change: the crops are the same.
    queries = [by_path[task.inputs[1]] for task in tasks]
    described = next(part for part in table.parts if part.kind == "queryset")

    # The description holds sums over the shards: it is written again only where these changed.
    before = QuerySetFacts.model_validate(table.info.model_dump(exclude={"database_version"}))
    facts = before.with_sums(stats)
    if facts != before:
        path = queryset_path(table.name, number)
        folder.write_record(path, facts)
        described = store.describe_part("queryset", path, 1)
    return [described, *shards, *queries]
