"""Bring the neighbor tables of a version to what an update makes of its patches, shard by shard."""

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
    """One shard of a table to repair for the drafted version: where it is read and, if it changes,
    written."""

    root: str
    name: str
    stem: str
    inputs: tuple[str, str]
    output: str
    config: NeighborConfig
    first_added: int
    key: str


class RepairStats(TableSums):
    """What a shard's repair did: whether a neighbor changed, and how many rows were looked up
    again."""

    changed: bool
    searched: int


class TableRepair(Record):
    """What the repair of a table did: its rows, the shards that changed, the rows that were looked
    up again."""

    rows: int
    changed_shards: int
    searched_rows: int


def repair_shard(task: RepairTask) -> RepairStats:
    """Write a shard's table as a new lookup in the drafted version would; return whether it
    changed, and counts.

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
    database = RetrievalDatabase(folder, VersionStore(folder).draft())
    table = folder.read_table(task.inputs[0])
    queries = np.asarray(folder.read_array(task.inputs[1]))
    stored = stored_lookup(table, task.config.k_stored)
    if task.config.exact:
        rule = exclusion_rule(database, table, task.config)
        found, searched = repair_neighbors(
            queries, stored, database.parts, task.first_added, database.tombstones, rule
        )
    else:
        found, searched = look_up(database, queries, table, task.config), len(queries)
    require_full(table["key"].to_pylist(), found, folder.describe(f"neighbors/{task.name}"))
    changed = not found.equals(stored)
    if changed:
        folder.write_table(task.output, with_lookup(table, found, task.config))
    return RepairStats(changed=changed, searched=searched, **dict(lookup_sums(found)))


def repair_tables(
    folder: Folder, parent: Version, draft: Version, pool: Pool
) -> tuple[list[Part], dict[str, TableRepair]]:
    """Repair every table of the parent version; return the tables' parts in the drafted one, and
    counts by query set.

    Files that need no change are carried over. Counts: rows, shards that changed, rows looked up
    again.

    Raises:
        DatabaseError: a table stores more neighbors than patches are left.
    """
    parts: list[Part] = []
    counts: dict[str, TableRepair] = {}
    for name in NeighborTable.names(folder, parent):
        table = NeighborTable(folder, name, parent)
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
    store = VersionStore(folder)
    by_path = {part.path: part for part in table.parts}
    shards = [
        store.describe_part("neighbors", task.output, by_path[task.inputs[0]].num_rows)
        if shard.changed
        else by_path[task.inputs[0]]
        for task, shard in zip(tasks, stats, strict=True)
    ]
    queries = [by_path[task.inputs[1]] for task in tasks]
    described = next(part for part in table.parts if part.kind == "queryset")
    before = QuerySetFacts.model_validate(table.info.model_dump(exclude={"database_version"}))
    facts = before.with_sums(stats)
    if facts != before:
        path = queryset_path(table.name, number)
        folder.write_record(path, facts)
        described = store.describe_part("queryset", path, 1)
    return [described, *shards, *queries]
