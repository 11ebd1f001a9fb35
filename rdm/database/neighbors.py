"""Neighbor tables: the k nearest patches of every crop of a query set, precomputed into Parquet.

A table belongs to a version of the database, like every other part: a version's tables are immutable, and an update
commits repaired ones together with the patches that it adds and deletes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from rdm.compute.shards import Pool
from rdm.config import Config, digest_json
from rdm.database.embed import encode_images
from rdm.database.facade import RetrievalDatabase
from rdm.encoders import load_encoder, normalize
from rdm.errors import DatabaseError, FailureBudgetError
from rdm.sources import QuerySet, QuerySetConfig
from rdm.storage import Folder, Markers, Part, Version, VersionStore, sha256_file

TABLE_KINDS = ("queryset", "neighbors", "queries")


class NeighborConfig(Config):
    """What is looked up for every crop."""

    queries: QuerySetConfig
    k_stored: int = Field(
        default=20, ge=1, description="neighbors stored, more than are used, so that deletions rarely need a search"
    )
    exact: bool = Field(default=True, description="compare with every vector; false: use the index")
    batch_size: int = Field(default=64, ge=1, description="crops encoded at once")
    min_success_rate: float = Field(default=0.9, ge=0, le=1, description="share of the photographs that must be usable")


@dataclass(frozen=True)
class NeighborTask:
    """One shard of a query set to look up: `outputs` are the paths of its table and of its query embeddings."""

    root: str
    version: int
    name: str
    stem: str
    config: NeighborConfig
    encoder: str
    outputs: tuple[str, str]
    key: str


def neighbor_shard(task: NeighborTask) -> dict[str, Any]:
    """Embed a query shard's crops, look up their neighbors and write both; return counts."""
    folder = Folder(task.root)
    markers = Markers(folder, f"neighbors-{task.name}")
    if (marker := markers.find(task.stem, task.key)) is not None:
        return marker.stats
    encoder = load_encoder(task.encoder)
    failures: list[tuple[str, str]] = []
    keys: list[str] = []

    def pixels() -> Any:
        for crop in QuerySet(task.config.queries).crops(task.stem, failures):
            keys.append(crop.key)
            yield crop.image

    raw = encode_images(encoder, pixels(), task.config.batch_size)
    database = RetrievalDatabase.open(task.root, version=task.version)
    unit = normalize(raw).astype(np.float16)
    ids, similarities = database.search_vectors(unit, task.config.k_stored, exact=task.config.exact)
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "neighbor_ids": fixed_lists(ids),
            "similarities": fixed_lists(similarities),
            "norm": np.linalg.norm(raw, axis=1).astype(np.float32),
        }
    )
    folder.write_table(task.outputs[0], table)
    folder.write_array(task.outputs[1], unit)
    stats = {"num_queries": len(keys), "failures": failures, "similarity_sum": similarity_sum(similarities)}
    markers.write(task.stem, task.key, task.outputs, stats)
    return stats


def build_neighbors(root: str, name: str, config: NeighborConfig, pool: Pool) -> dict[str, Any]:
    """Look up every crop of a query set and commit a version with the table; return counts.

    A rerun does only what is missing; of a table that stands it does nothing, or replaces the files that were lost.

    Raises:
        DatabaseError: the root is no database, or the name is not a plain word.
        ConcurrentWriterError: another process is writing the database.
        FailureBudgetError: too few photographs were usable.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise DatabaseError(f"{name!r} cannot name a query set", fix="use letters, digits, - and _")
    store = VersionStore(Folder(root))
    store.require()
    queries = QuerySet(config.queries)
    table = _standing_table(RetrievalDatabase.open(root), name, queries, config)
    if table is not None and not table.lost_stems():
        return table.info
    with store.writer():  # a writer of the database would sweep this one's temporary files away
        database = RetrievalDatabase.open(root)
        table = _standing_table(database, name, queries, config)
        if table is not None and _restore(database, table, config, pool):
            return table.info
        return _build_table(database, name, queries, config, pool)


def _standing_table(
    database: RetrievalDatabase, name: str, queries: QuerySet, config: NeighborConfig
) -> NeighborTable | None:
    if name not in NeighborTable.names(database.folder, database.version):
        return None
    table = NeighborTable(database.folder, name, database.version)
    asked = {
        "queries_digest": queries.digest,
        "config": config.model_dump(mode="json"),
        "encoder_digest": database.encoder_digest,
        "database_version": database.version.number,
    }
    return table if {field: table.info.get(field) for field in asked} == asked else None


def _restore(database: RetrievalDatabase, table: NeighborTable, config: NeighborConfig, pool: Pool) -> bool:
    """Make lost shards again in their places; return whether they came out as they were."""
    stems, digest = table.lost_stems(), table.info["queries_digest"]
    tasks = [_task(database, table.name, stem, config, table.paths(stem), digest) for stem in stems]
    list(pool.map(neighbor_shard, tasks, stage="neighbors", names=stems))
    lost = {path for task in tasks for path in task.outputs}
    return all(
        sha256_file(database.folder.local(part.path)) == part.sha256 for part in table.parts if part.path in lost
    )


def _task(
    database: RetrievalDatabase,
    name: str,
    stem: str,
    config: NeighborConfig,
    outputs: tuple[str, str],
    queries_digest: str,
) -> NeighborTask:
    version = database.version
    searched = [version.encoder, version.tombstones]
    searched += [part.sha256 for part in version.parts if part.kind in ("embeddings", "index")]
    key = digest_json([config.model_dump(mode="json"), queries_digest, searched, outputs])
    return NeighborTask(database.folder.url, version.number, name, stem, config, database.encoder_name, outputs, key)


def _build_table(
    database: RetrievalDatabase, name: str, queries: QuerySet, config: NeighborConfig, pool: Pool
) -> dict[str, Any]:
    number = database.version.number + 1
    place = f"neighbors/{name}/{number:06d}"
    outputs = [(f"{place}/{stem}.parquet", f"{place}/{stem}.npy") for stem in queries.stems]
    tasks = [
        _task(database, name, stem, config, paths, queries.digest)
        for stem, paths in zip(queries.stems, outputs, strict=True)
    ]
    finished = dict(pool.map(neighbor_shard, tasks, stage="neighbors", names=queries.stems))
    stats = [finished[number] for number in range(len(tasks))]  # shards finish in any order; sums must not show it
    failures = [failure for shard in stats for failure in shard["failures"]]
    num_queries = sum(shard["num_queries"] for shard in stats)
    _check_budget(queries, failures, config.min_success_rate)
    info = {
        "queries": config.queries.model_dump(mode="json"),
        "queries_digest": queries.digest,
        "name": name,
        "config": config.model_dump(mode="json"),
        "stems": queries.stems,
        "num_queries": num_queries,
        "failures": failures,
        "encoder_digest": database.encoder_digest,
        "mean_top1_similarity": sum(shard["similarity_sum"] for shard in stats) / max(num_queries, 1),
    }
    database.folder.write_json(f"{place}/queryset.json", info)
    store = VersionStore(database.folder)
    counts = [shard["num_queries"] for shard in stats]
    parts = [
        store.describe_part("queryset", f"{place}/queryset.json", 1),
        *(store.describe_part("neighbors", task.outputs[0], n) for task, n in zip(tasks, counts, strict=True)),
        *(store.describe_part("queries", task.outputs[1], n) for task, n in zip(tasks, counts, strict=True)),
    ]
    before = table_parts(database.version, name)
    parts = sort_table_parts([*(part for part in database.version.parts if part not in before), *parts])
    store.commit(database.version.model_copy(update={"number": number, "parent": number - 1, "parts": parts}))
    return {**info, "database_version": number}


def table_parts(version: Version, name: str) -> list[Part]:
    """Return the parts of one query set's table: what describes it, its shards, their query embeddings."""
    return [part for part in version.parts if part.kind in TABLE_KINDS and part.path.split("/")[1] == name]


def sort_table_parts(parts: Sequence[Part]) -> list[Part]:
    """Return parts with those of the tables last, by name, so that the order of the work does not show."""
    tables = [part for part in parts if part.kind in TABLE_KINDS]
    tables.sort(key=lambda p: (p.path.split("/")[1], TABLE_KINDS.index(p.kind), p.path.rpartition("/")[2]))
    return [*(part for part in parts if part.kind not in TABLE_KINDS), *tables]


class NeighborTable:
    """The stored neighbors of one query set, in one version of a database, by default the current one.

    Raises:
        DatabaseError: the version has none of that name.
    """

    def __init__(self, folder: Folder, name: str, version: Version | None = None) -> None:
        self.folder = folder
        self.name = name
        version = version or VersionStore(folder).require()
        self.parts = table_parts(version, name)
        if name not in self.names(folder, version):
            raise DatabaseError(
                f"there are no neighbors of a query set {name!r}",
                where=folder.url,
                fix=f"rdm neighbors build --root {folder.url} --queries SPEC --name {name}",
            )
        described = [part.path for part in self.parts if part.kind == "queryset"]
        self.info: dict[str, Any] = {
            "database_version": version.number,
            **folder.read_json(described[0] if described else _older_description(name)),
        }

    @staticmethod
    def names(folder: Folder, version: Version | None = None) -> list[str]:
        """Return the query sets whose neighbors are stored."""
        version = version or VersionStore(folder).require()
        found = {part.path.split("/")[1] for part in version.parts_of("queryset")}
        older = {name for name in folder.names("neighbors") if folder.exists(_older_description(name))}
        return sorted(found | older)

    def paths(self, stem: str) -> tuple[str, str]:
        """Return the paths of a shard's table and of its query embeddings."""
        names = (("neighbors", f"{stem}.parquet"), ("queries", f"{stem}.npy"))
        found = [p.path for kind, name in names for p in self.parts if p.kind == kind and p.path.endswith(f"/{name}")]
        table, queries = found or [f"neighbors/{self.name}/{name}" for _, name in names]  # the latter: format 1
        return table, queries

    def shard(self, stem: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
        """Return keys [N], neighbor ids [N, k] and similarities [N, k] of one shard."""
        table = self.folder.read_table(self.paths(stem)[0])
        return table.column("key").to_pylist(), *neighbor_columns(table, self.info["config"]["k_stored"])

    def embeddings(self, stem: str) -> NDArray[np.float16]:
        """Return the crops' own unit embeddings [N, dim] of one shard."""
        return self.folder.read_array(self.paths(stem)[1])

    @cached_property
    def all_ids(self) -> NDArray[np.int64]:
        """The neighbor ids [N, k] of the whole query set."""
        return np.concatenate([self.shard(stem)[1] for stem in self.info["stems"]])

    def lost_stems(self) -> list[str]:
        """Return the shards of which a file is missing or not of its recorded size."""
        lost = {p.path for p in self.parts if not self.folder.exists(p.path) or self.folder.size(p.path) != p.num_bytes}
        return [stem for stem in self.info["stems"] if not lost.isdisjoint(self.paths(stem))]


def fixed_lists(values: NDArray[Any]) -> pa.Array:
    """Return the rows of an array [N, k] as lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def neighbor_columns(table: pa.Table, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a shard's neighbor ids [N, k] and similarities [N, k]."""
    ids, similarities = (
        table.column(name).combine_chunks().flatten().to_numpy().reshape(-1, k)
        for name in ("neighbor_ids", "similarities")
    )
    return ids, similarities


def similarity_sum(similarities: NDArray[np.float32]) -> float:
    """Return the sum of the first neighbors' similarities [N, k]."""
    return float(similarities[:, 0].sum())


def _older_description(name: str) -> str:
    return f"neighbors/{name}/queryset.json"  # where format 1 has it


def _check_budget(queries: QuerySet, failures: list[tuple[str, str]], least: float) -> None:
    rate = 1 - len(failures) / queries.listing.num_rows
    if rate < least:
        first = ", ".join(f"{image_id} ({reason})" for image_id, reason in failures[:3])
        raise FailureBudgetError(
            f"only {rate:.1%} of the query photographs are usable, under {least:.1%}: {first}",
            where=queries.config.source,
            fix="mend the source, or lower min_success_rate",
        )
