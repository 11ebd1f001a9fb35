"""Neighbor tables: the k nearest patches of every crop of a query set, precomputed into Parquet."""

from __future__ import annotations

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
from rdm.storage import Folder, Markers, VersionStore


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
    """One shard of a query set to look up."""

    root: str
    version: int
    name: str
    stem: str
    config: NeighborConfig
    encoder: str
    key: str

    @property
    def outputs(self) -> tuple[str, str]:
        """The paths of the shard's table and of its query embeddings."""
        return f"neighbors/{self.name}/{self.stem}.parquet", f"neighbors/{self.name}/{self.stem}.npy"


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
            "neighbor_ids": _lists(ids, pa.int64()),
            "similarities": _lists(similarities, pa.float32()),
            "norm": np.linalg.norm(raw, axis=1).astype(np.float32),
        }
    )
    folder.write_table(task.outputs[0], table)
    folder.write_array(task.outputs[1], unit)
    stats = {"num_queries": len(keys), "failures": failures, "similarity_sum": float(similarities[:, 0].sum())}
    markers.write(task.stem, task.key, task.outputs, stats)
    return stats


def build_neighbors(root: str, name: str, config: NeighborConfig, pool: Pool) -> dict[str, Any]:
    """Look up every crop of a query set and write `neighbors/NAME/`; return counts. A rerun does only what is missing.

    Raises:
        DatabaseError: the root is no database, or the name is not a plain word.
        ConcurrentWriterError: another process is writing the database.
        FailureBudgetError: too few photographs were usable.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise DatabaseError(f"{name!r} cannot name a query set", fix="use letters, digits, - and _")
    store = VersionStore(Folder(root))
    store.require()
    with store.writer():  # a writer of the database would sweep this one's temporary files away
        return _build_neighbors(RetrievalDatabase.open(root), name, config, pool)


def _build_neighbors(database: RetrievalDatabase, name: str, config: NeighborConfig, pool: Pool) -> dict[str, Any]:
    queries, version, root = QuerySet(config.queries), database.version, database.folder.url
    key = digest_json([queries.digest, config.model_dump(mode="json"), version.number, version.encoder])
    tasks = [
        NeighborTask(root, version.number, name, stem, config, database.encoder_name, key) for stem in queries.stems
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
        "database_version": version.number,
        "stems": queries.stems,
        "num_queries": num_queries,
        "failures": failures,
        "encoder_digest": database.encoder_digest,
        "mean_top1_similarity": sum(shard["similarity_sum"] for shard in stats) / max(num_queries, 1),
    }
    database.folder.write_json(f"neighbors/{name}/queryset.json", info)
    return info


class NeighborTable:
    """The stored neighbors of one query set."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.name = name
        path = f"neighbors/{name}/queryset.json"
        if not folder.exists(path):
            raise DatabaseError(
                f"there are no neighbors of a query set {name!r}",
                where=folder.url,
                fix=f"rdm neighbors build --root {folder.url} --queries SPEC --name {name}",
            )
        self.info: dict[str, Any] = folder.read_json(path)

    @staticmethod
    def names(folder: Folder) -> list[str]:
        """Return the query sets whose neighbors are stored."""
        return [name for name in folder.names("neighbors") if folder.exists(f"neighbors/{name}/queryset.json")]

    def shard(self, stem: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
        """Return keys [N], neighbor ids [N, k] and similarities [N, k] of one shard."""
        table = self.folder.read_table(f"neighbors/{self.name}/{stem}.parquet")
        k = self.info["config"]["k_stored"]
        ids = table.column("neighbor_ids").combine_chunks().flatten().to_numpy().reshape(-1, k)
        similarities = table.column("similarities").combine_chunks().flatten().to_numpy().reshape(-1, k)
        return table.column("key").to_pylist(), ids, similarities

    def embeddings(self, stem: str) -> NDArray[np.float16]:
        """Return the crops' own unit embeddings [N, dim] of one shard."""
        return self.folder.read_array(f"neighbors/{self.name}/{stem}.npy")

    @cached_property
    def all_ids(self) -> NDArray[np.int64]:
        """The neighbor ids [N, k] of the whole query set."""
        return np.concatenate([self.shard(stem)[1] for stem in self.info["stems"]])


def _lists(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), values.shape[1])


def _check_budget(queries: QuerySet, failures: list[tuple[str, str]], least: float) -> None:
    rate = 1 - len(failures) / queries.listing.num_rows
    if rate < least:
        first = ", ".join(f"{image_id} ({reason})" for image_id, reason in failures[:3])
        raise FailureBudgetError(
            f"only {rate:.1%} of the query photographs are usable, under {least:.1%}: {first}",
            where=queries.config.source,
            fix="mend the source, or lower min_success_rate",
        )
