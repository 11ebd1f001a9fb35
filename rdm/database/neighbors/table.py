"""Neighbor tables: the k nearest patches of every crop of a query set, precomputed into Parquet.

A table belongs to a version of the database, like every other part: a version's tables are
immutable, and an update commits repaired ones together with the patches that it adds and deletes.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from rdm.config import Config, Record
from rdm.database.contract import TABLE_KINDS, query_set_of
from rdm.database.neighbors.exclusion import (
    Lookup,
    Neighbors,
    no_neighbors,
    padded_lists,
    variable_lists,
)
from rdm.errors import DatabaseError, StorageError
from rdm.sources import QuerySetConfig
from rdm.storage import Folder, Part, Version, VersionStore


class NeighborConfig(Config):
    """Settings of a lookup: the crops, how many neighbors each, and what is excluded."""

    queries: QuerySetConfig
    k_stored: int = Field(
        default=20,
        ge=1,
        description="neighbors stored, more than are used, so that deletions rarely need a search",
    )
    exact: bool = Field(default=True, description="compare with every vector; false: use the index")
    exclude_self: bool = Field(
        default=False,
        description="no neighbors from the crop's own photograph, should the database hold it",
    )
    exclude_above: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="a patch at least this similar is a near-duplicate, and no neighbor",
    )
    shared_image_ids: bool | None = Field(
        default=None,
        description="whether equal image ids mean the same photograph, besides equal bytes; "
        "by default where the query set and the database are of one source, or both of Open Images",
    )
    batch_size: int = Field(default=64, ge=1, description="crops encoded at once")
    min_success_rate: float = Field(
        default=0.9, ge=0, le=1, description="share of the photographs that must be usable"
    )

    @property
    def excludes(self) -> bool:
        """Whether any patch may be excluded."""
        return self.exclude_self or self.exclude_above is not None


class TableSums(Record):
    """The sums over the crops of a shard, which add up to those of its table."""

    similarity_sum: float
    """Of the first neighbors."""
    num_excluded: int


class QuerySetFacts(Record):
    """`queryset.json`: the crops of a table, the settings of its lookup, and its results."""

    name: str
    queries: QuerySetConfig
    queries_digest: str
    config: NeighborConfig
    stems: list[str]
    num_queries: int
    failures: list[tuple[str, str]]
    """Photographs that could not be used: image id and reason."""
    encoder_digest: str
    mean_top1_similarity: float
    num_excluded: int

    def with_sums(self, shards: Sequence[TableSums]) -> QuerySetFacts:
        """Return the facts with what the shards of a table add up to."""
        return self.model_copy(update=mean_and_excluded(shards, self.num_queries))


class TableFacts(QuerySetFacts):
    """A query set's table in one version of a database."""

    database_version: int


def mean_and_excluded(shards: Sequence[TableSums], num_queries: int) -> dict[str, float]:
    """Return a table's mean first similarity and number of excluded patches, from its shards'."""
    return {
        "mean_top1_similarity": sum(shard.similarity_sum for shard in shards) / max(num_queries, 1),
        "num_excluded": sum(shard.num_excluded for shard in shards),
    }


def build_command(root: str, name: str, config: NeighborConfig) -> str:
    """Return the command line that builds a table with all settings of a configuration."""
    words = ["rdm", "neighbors", "build", "--root", root]
    words += ["--queries", config.queries.source, "--name", name]
    if config.exclude_self:
        words += ["--exclude-self"]
    if config.exclude_above is not None:
        words += ["--exclude-above", f"{config.exclude_above:g}"]

    # Everything else by `--set`; crops and shards are spelled out, as presets may change them.
    fields = config.model_dump(
        mode="json", exclude_defaults=True, exclude={"queries", "exclude_self", "exclude_above"}
    )
    fields["queries.crop"] = config.queries.crop.model_dump(mode="json", exclude_defaults=True)
    fields["queries.images_per_shard"] = config.queries.images_per_shard

    for field, value in fields.items():
        words += ["--set", f"{field}={json.dumps(value, separators=(',', ':'))}"]
    return shlex.join(words)


def table_parts(version: Version, name: str) -> list[Part]:
    """Return the parts of one query set's table: description, shards, query embeddings."""
    return [
        part
        for part in version.parts
        if part.kind in TABLE_KINDS and query_set_of(part.path) == name
    ]


def sort_table_parts(parts: Sequence[Part]) -> list[Part]:
    """Return parts with the tables' last, by name: the order of the work does not show."""
    tables = [part for part in parts if part.kind in TABLE_KINDS]
    tables.sort(
        key=lambda p: (query_set_of(p.path), TABLE_KINDS.index(p.kind), p.path.rpartition("/")[2])
    )
    return [*(part for part in parts if part.kind not in TABLE_KINDS), *tables]


class NeighborTable:
    """The stored neighbors of one query set in a version, by default the current one.

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
                fix=f"query sets here: {', '.join(self.names(folder, version)) or 'none'}; "
                f"rdm neighbors build --root {folder.url} --queries SPEC --name {name} makes them",
            )

        self.info = TableFacts(
            database_version=version.number, **dict(_description(folder, self.parts))
        )

    @property
    def config(self) -> NeighborConfig:
        """The settings of the lookup."""
        return self.info.config

    @staticmethod
    def names(folder: Folder, version: Version | None = None) -> list[str]:
        """Return the query sets whose neighbors are stored."""
        version = version or VersionStore(folder).require()
        return sorted({query_set_of(part.path) for part in version.parts_of("queryset")})

    @classmethod
    def of_query_set(
        cls, folder: Folder, queries_digest: str, version: Version | None = None
    ) -> NeighborTable | None:
        """Return the table of a query set, the first by name if there are several; None: none.

        Raises:
            DatabaseError: several exclude different patches: the one that is meant is unknown.
        """
        tables = [cls(folder, name, version) for name in cls.names(folder, version)]
        matching = [table for table in tables if table.info.queries_digest == queries_digest]
        if len({(table.config.exclude_self, table.config.exclude_above) for table in matching}) > 1:
            names = ", ".join(table.name for table in matching)
            raise DatabaseError(
                f"the tables {names} are of one query set and exclude different patches",
                where=folder.url,
                fix="build all of them again with the same --exclude-self and --exclude-above",
            )
        return matching[0] if matching else None

    def paths(self, stem: str) -> tuple[str, str]:
        """Return the paths of a shard's table and of its query embeddings."""
        names = (("neighbors", f"{stem}.parquet"), ("queries", f"{stem}.npy"))
        table, queries = (
            p.path
            for kind, name in names
            for p in self.parts
            if p.kind == kind and p.path.endswith(f"/{name}")
        )
        return table, queries

    def shard(self, stem: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
        """Return keys [N], neighbor ids [N, k] and similarities [N, k] of one shard."""
        table = self.table(stem)
        return table.column("key").to_pylist(), *stored_lookup(
            table, self.config.k_stored
        ).neighbors

    def excluded(self, stem: str) -> Neighbors:
        """Return ids and similarities [N, m] of the excluded that rank before the last neighbor."""
        return stored_lookup(self.table(stem), self.config.k_stored).excluded

    def table(self, stem: str) -> pa.Table:
        """Return the rows of one shard as they are stored."""
        return self.folder.read_table(self.paths(stem)[0])

    def embeddings(self, stem: str) -> NDArray[np.float16]:
        """Return the crops' own unit embeddings [N, dim] of one shard."""
        return self.folder.read_array(self.paths(stem)[1])

    @cached_property
    def all_ids(self) -> NDArray[np.int64]:
        """The neighbor ids [N, k] of the whole query set."""
        return np.concatenate([self.shard(stem)[1] for stem in self.info.stems])

    def lost_stems(self) -> list[str]:
        """Return the shards of which a file is missing or not of its recorded size."""
        lost = {
            p.path
            for p in self.parts
            if not self.folder.exists(p.path) or self.folder.size(p.path) != p.num_bytes
        }
        return [stem for stem in self.info.stems if not lost.isdisjoint(self.paths(stem))]


def with_lookup(table: pa.Table, lookup: Lookup, config: NeighborConfig) -> pa.Table:
    """Return a shard's table with the columns of a lookup: new ones, or in their places."""
    columns: dict[str, pa.Array] = dict(
        zip(("neighbor_ids", "similarities"), map(_fixed_lists, lookup.neighbors), strict=True)
    )
    if config.excludes:
        columns |= zip(
            ("excluded_ids", "excluded_similarities"), variable_lists(lookup.excluded), strict=True
        )

    # A column that is there keeps its place: only its values are new.
    for name, values in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    return table


def stored_lookup(table: pa.Table, k: int) -> Lookup:
    """Return a table's neighbors [N, k], and the excluded ones that rank before the last.

    Raises:
        DatabaseError: the table has lists of another length.
    """
    flat = [
        table.column(name).combine_chunks().flatten().to_numpy()
        for name in ("neighbor_ids", "similarities")
    ]
    # Lists are flattened without their lengths: a list too short would shift all rows after it.
    if any(len(values) != table.num_rows * k for values in flat):
        raise DatabaseError(
            f"a neighbor table has {table.num_rows} rows with {len(flat[0])} neighbors in "
            f"all, not {k} in each",
            fix="build the neighbors again with `rdm neighbors build`",
        )

    ids, similarities = (values.reshape(-1, k) for values in flat)
    if "excluded_ids" not in table.column_names:
        return Lookup((ids, similarities), no_neighbors(len(ids), 0))
    return Lookup(
        (ids, similarities), padded_lists(table["excluded_ids"], table["excluded_similarities"])
    )


def lookup_sums(lookup: Lookup) -> TableSums:
    """Return a shard's share of the facts of its table."""
    return TableSums(
        similarity_sum=float(lookup.neighbors[1][:, 0].sum()),
        num_excluded=int((lookup.excluded[0] >= 0).sum()),
    )


def _fixed_lists(values: NDArray[Any]) -> pa.Array:
    """Return the rows of an array [N, k] as lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _description(folder: Folder, parts: Sequence[Part]) -> QuerySetFacts:
    """Read a table's `queryset.json`.

    Raises:
        StorageError: its digest is not the recorded one.
    """
    described = next(part for part in parts if part.kind == "queryset")
    data = folder.read_bytes(described.path)
    if hashlib.sha256(data).hexdigest() != described.sha256:
        raise StorageError(
            "the description of a query set is damaged",
            where=folder.describe(described.path),
            fix="restore the file from a copy; `rdm database verify` names every part that broke",
        )
    return QuerySetFacts.model_validate_json(data)
