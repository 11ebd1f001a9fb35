"""Look up the nearest patches of every crop of a query set, and commit them as a neighbor table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from rdm.compute.device import DeviceName, worker_device
from rdm.compute.pool import Pool
from rdm.config import digest_json
from rdm.database.contract import SEARCHED_KINDS, neighbor_paths, queryset_path
from rdm.database.neighbors.exclusion import (
    Exclude,
    Lookup,
    Neighbors,
    require_full,
    search_allowed,
)
from rdm.database.neighbors.same_photographs import Exclusion, PhotographMatches, share_image_ids
from rdm.database.neighbors.table import (
    NeighborConfig,
    NeighborTable,
    QuerySetFacts,
    TableFacts,
    TableSums,
    lookup_sums,
    sort_table_parts,
    table_parts,
    with_lookup,
)
from rdm.database.reader import RetrievalDatabase
from rdm.encoders import load_encoder, normalize, weights_path
from rdm.encoders.encoding import encode_images
from rdm.errors import DatabaseError, FailureBudgetError
from rdm.sources import QuerySet
from rdm.sources.workers import require_visible
from rdm.storage import Folder, ShardWork, VersionStore, resumable, sha256_file


@dataclass(frozen=True)
class NeighborTask:
    """One shard of a query set: `outputs` are the paths of its table and query embeddings."""

    root: str
    version: int
    name: str
    stem: str
    config: NeighborConfig
    encoder: str
    outputs: tuple[str, str]
    key: str
    device: DeviceName = "auto"


class NeighborStats(TableSums):
    """Counts of a shard's lookup."""

    num_queries: int
    failures: list[tuple[str, str]]
    """Photographs that could not be used: image id and reason."""


def neighbor_shard(task: NeighborTask) -> NeighborStats:
    """Embed a query shard's crops, look up their neighbors and write both; return counts."""
    shard = ShardWork(
        Folder(task.root), f"neighbors-{task.name}", task.stem, task.key, NeighborStats
    )
    return resumable(shard, lambda: (task.outputs, _look_up_shard(shard.folder, task)))


def _look_up_shard(folder: Folder, task: NeighborTask) -> NeighborStats:
    """Embed, look up and write one shard of a query set."""
    encoder = load_encoder(task.encoder, device=str(worker_device(task.device)))
    failures: list[tuple[str, str]] = []
    keys: list[str] = []
    sha256: list[str] = []

    # Pictures stream through the encoder; their keys are collected on the way.
    def pixels() -> Iterator[Image]:
        for crop in QuerySet(task.config.queries).crops(task.stem, failures):
            keys.append(crop.key)
            sha256.append(crop.sha256)
            yield crop.image

    raw = encode_images(encoder, pixels(), task.config.batch_size)
    database = RetrievalDatabase.open(task.root, version=task.version)
    unit = normalize(raw).astype(np.float16)

    # Look up; nothing is written of a shard whose crops lack neighbors.
    crops = pa.table({"key": pa.array(keys, pa.string()), "sha256": pa.array(sha256, pa.string())})
    lookup = look_up(database, unit, crops, task.config)
    require_full(keys, lookup, folder.describe(f"neighbors/{task.name}"))

    norm = np.linalg.norm(raw, axis=1).astype(np.float32)
    folder.write_table(
        task.outputs[0],
        with_lookup(crops.append_column("norm", pa.array(norm)), lookup, task.config),
    )
    folder.write_array(task.outputs[1], unit)
    return NeighborStats(num_queries=len(keys), failures=failures, **dict(lookup_sums(lookup)))


def look_up(
    database: RetrievalDatabase,
    queries: NDArray[np.float16],
    crops: pa.Table,
    config: NeighborConfig,
) -> Lookup:
    """Return the nearest allowed patches of a shard's crops.

    Args:
        database: the version to search.
        queries: the crops' unit vectors [N, dim].
        crops: a row for each with `key` and `sha256` of its photograph's file.
        config: how many, how, and what is excluded.

    Raises:
        DatabaseError: there are fewer patches than `k_stored`.
    """
    living = database.version.num_live_patches

    def search(some: NDArray[np.float16], width: int) -> Neighbors:
        return database.search_vectors(
            some, max(config.k_stored, min(width, living)), exact=config.exact
        )

    return search_allowed(search, queries, config.k_stored, exclusion_rule(database, crops, config))


def exclusion_rule(
    database: RetrievalDatabase, crops: pa.Table, config: NeighborConfig
) -> Exclude | None:
    """Return the rule that keeps patches out of a shard's neighbors; None: all are allowed.

    Args:
        database: the version to search.
        crops: rows of `key` and `sha256`.
        config: the exclusions.

    Raises:
        DatabaseError: see photograph_matches.
    """
    matches = photograph_matches(database, crops, config) if config.exclude_self else None
    if matches is None and config.exclude_above is None:
        return None
    return Exclusion(matches, config.exclude_above)


def photograph_matches(
    database: RetrievalDatabase, crops: pa.Table, config: NeighborConfig
) -> PhotographMatches:
    """Compare the photographs of crops (rows of `key` and `sha256`) with the database's.

    Raises:
        DatabaseError: the database was imported, and nobody says whether its image ids are the
            query set's.
    """
    # Not said: then both sources must be of one kind whose ids are global.
    shared = config.shared_image_ids
    if shared is None:
        shared = share_image_ids(database.version.source, config.queries.source)
        if not shared and not database.has_pixels:
            raise DatabaseError(
                "an imported database knows its photographs by image id alone: are these ids "
                "the query set's too?",
                where=database.folder.url,
                fix="rdm neighbors build ... --set shared_image_ids=true, or =false to go by "
                "similarity alone",
            )

    return PhotographMatches(database, crops, by_image_id=shared)


def check_name(name: str) -> None:
    """Raise DatabaseError unless a name can be a query set's."""
    if not name.replace("-", "").replace("_", "").isalnum():
        raise DatabaseError(f"{name!r} cannot name a query set", fix="use letters, digits, - and _")


def build_neighbors(root: str, name: str, config: NeighborConfig, pool: Pool) -> TableFacts:
    """Look up every crop of a query set and commit a version with the table; return its facts.

    A rerun does only what is missing; of a table that stands it does nothing, or replaces the files
    that were lost.

    Raises:
        DatabaseError: the root is no database, or the name is not a plain word.
        ConcurrentWriterError: another process is writing the database.
        FailureBudgetError: too few photographs were usable.
    """
    check_name(name)
    store = VersionStore(Folder(root))
    store.require()

    # A table that stands is returned at once, without the lock.
    queries = QuerySet(config.queries)
    table = _standing_table(RetrievalDatabase.open(root), name, queries, config)
    if table is not None and not table.lost_stems():
        return table.info

    # Under the lock: another writer would sweep this one's temporary files away.
    with store.writer():
        database = RetrievalDatabase.open(root, device=pool.config.device)
        source, weights = config.queries.source, weights_path(database.encoder_name)
        require_visible(pool, database.folder, source=source, others=(weights,))

        # Another process may have built the table while this one waited for the lock.
        table = _standing_table(database, name, queries, config)
        if table is not None and _restore(database, table, config, pool):
            return table.info
        return _build_table(database, name, queries, config, pool)


def _standing_table(
    database: RetrievalDatabase, name: str, queries: QuerySet, config: NeighborConfig
) -> NeighborTable | None:
    """Return the table of this name if it answers exactly this request; else None."""
    if name not in NeighborTable.names(database.folder, database.version):
        return None
    table = NeighborTable(database.folder, name, database.version)
    asked = (queries.digest, config, database.encoder_digest)
    stands = (table.info.queries_digest, table.config, table.info.encoder_digest)
    return table if stands == asked else None


def _restore(
    database: RetrievalDatabase, table: NeighborTable, config: NeighborConfig, pool: Pool
) -> bool:
    """Make lost shards again in their places; return whether they came out bit for bit."""
    stems, digest = table.lost_stems(), table.info.queries_digest
    tasks = [_task(database, table.name, stem, config, table.paths(stem), digest) for stem in stems]
    list(pool.map(neighbor_shard, tasks, stage="neighbors", names=stems))
    lost = {path for task in tasks for path in task.outputs}
    return all(
        sha256_file(database.folder.local(part.path)) == part.sha256
        for part in table.parts
        if part.path in lost
    )


def _task(
    database: RetrievalDatabase,
    name: str,
    stem: str,
    config: NeighborConfig,
    outputs: tuple[str, str],
    queries_digest: str,
) -> NeighborTask:
    # The key: everything that decides the neighbors of a shard, but the shard itself.
    version = database.version
    searched: list[object] = [version.encoder.to_json(), version.tombstones]
    searched += [part.sha256 for part in version.parts if part.kind in SEARCHED_KINDS]
    key = digest_json([config.model_dump(mode="json"), queries_digest, searched, outputs])

    return NeighborTask(
        database.folder.url,
        version.number,
        name,
        stem,
        config,
        database.encoder_name,
        outputs,
        key,
        database.device,
    )


def _build_table(
    database: RetrievalDatabase, name: str, queries: QuerySet, config: NeighborConfig, pool: Pool
) -> TableFacts:
    """Look up all shards of a query set and commit a version with the table; return its facts."""
    # One task for each shard of queries.
    number = database.version.number + 1
    outputs = [neighbor_paths(name, number, stem) for stem in queries.stems]
    tasks = [
        _task(database, name, stem, config, paths, queries.digest)
        for stem, paths in zip(queries.stems, outputs, strict=True)
    ]
    finished = dict(pool.map(neighbor_shard, tasks, stage="neighbors", names=queries.stems))

    # Shards finish in any order: sums of floats in that order would differ from run to run.
    stats = [finished[number] for number in range(len(tasks))]
    failures = [failure for shard in stats for failure in shard.failures]
    _check_budget(queries, failures, config.min_success_rate)

    facts = QuerySetFacts(
        name=name,
        queries=config.queries,
        queries_digest=queries.digest,
        config=config,
        stems=queries.stems,
        num_queries=sum(shard.num_queries for shard in stats),
        failures=failures,
        encoder_digest=database.encoder_digest,
        mean_top1_similarity=0,
        num_excluded=0,
    ).with_sums(stats)

    _commit_table(database, facts, tasks, [shard.num_queries for shard in stats])
    return TableFacts(database_version=number, **dict(facts))


def _commit_table(
    database: RetrievalDatabase,
    facts: QuerySetFacts,
    tasks: Sequence[NeighborTask],
    counts: Sequence[int],
) -> None:
    """Commit a version in which a table replaces the one of its name, if there is any."""
    number, name = database.version.number + 1, facts.name
    # The description first, then the table: one part for each shard and kind.
    described = queryset_path(name, number)
    database.folder.write_record(described, facts)
    store = VersionStore(database.folder)
    parts = [
        store.describe_part("queryset", described, 1),
        *(
            store.describe_part("neighbors", task.outputs[0], n)
            for task, n in zip(tasks, counts, strict=True)
        ),
        *(
            store.describe_part("queries", task.outputs[1], n)
            for task, n in zip(tasks, counts, strict=True)
        ),
    ]

    # In place of the former table of that name; other tables stay as they are.
    before = table_parts(database.version, name)
    parts = sort_table_parts(
        [*(part for part in database.version.parts if part not in before), *parts]
    )

    store.commit(
        database.version.model_copy(update={"number": number, "parent": number - 1, "parts": parts})
    )


def drop_neighbors(root: str, name: str) -> int:
    """Commit a version without a query set's table; return its number. Older versions keep it.

    Raises:
        DatabaseError: the root is no database, or has no table of that name.
        ConcurrentWriterError: another process is writing the database.
    """
    folder = Folder(root)
    store = VersionStore(folder)
    NeighborTable(folder, name)  # raises for an unknown name before the lock makes a file

    with store.writer():
        version = store.require()
        dropped = NeighborTable(folder, name, version).parts
        parts = [part for part in version.parts if part not in dropped]
        number = version.number + 1
        store.commit(
            version.model_copy(update={"number": number, "parent": version.number, "parts": parts})
        )
    return number


def _check_budget(queries: QuerySet, failures: list[tuple[str, str]], least: float) -> None:
    rate = 1 - len(failures) / queries.listing.num_rows
    if rate < least:
        first = ", ".join(f"{image_id} ({reason})" for image_id, reason in failures[:3])
        raise FailureBudgetError(
            f"only {rate:.1%} of the query photographs are usable, under {least:.1%}: {first}",
            where=queries.config.source,
            fix="mend the source, or lower min_success_rate",
        )
