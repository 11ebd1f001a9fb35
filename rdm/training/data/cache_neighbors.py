"""The neighbor table of a latent cache's query set, and checks that it fits the cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rdm.database import NeighborTable, RetrievalDatabase
from rdm.errors import CacheError, DatabaseError
from rdm.training.data.latent_cache import LatentCache


def table_of(cache: LatentCache, root: str) -> tuple[NeighborTable, RetrievalDatabase]:
    """Return the neighbor table of a cache's query set, and its database's current version.

    Raises:
        CacheError: it has none.
        DatabaseError: it has several that exclude different patches, or they were looked up with
            another encoder.
    """
    current = RetrievalDatabase.open(root)
    table = NeighborTable.of_query_set(current.folder, cache.info.queries_digest, current.version)
    if table is None:
        raise CacheError(
            "the database has no neighbors of the query set that this cache was made from",
            where=cache.folder.url,
            fix=f"rdm neighbors build --root {root} --queries SPEC --name NAME, with the "
            "same crops",
        )

    # Vectors of two encoders lie in different spaces, whatever their length.
    if (found := table.info.encoder_digest) != current.encoder_digest:
        raise DatabaseError(
            f"the neighbors {table.name} were looked up with another encoder: {found}, not "
            f"{current.encoder_digest}",
            where=root,
            fix=f"rdm neighbors build --root {root} --queries SPEC --name {table.name}",
        )
    return table, current


def ids_of_crops(table: NeighborTable, stem: str, keys: list[str]) -> NDArray[np.int64]:
    """Return the stored neighbors [N, k_stored] of crops by key, nearest first.

    Raises:
        CacheError: a crop has none.
    """
    stored, ids, _ = table.shard(stem)
    place = {key: row for row, key in enumerate(stored)}
    try:
        return ids[[place[key] for key in keys]]
    except KeyError as error:
        raise CacheError(
            f"the crop {error} has no neighbors",
            where=f"shard {stem}",
            fix="build the cache and the neighbors again from the same source",
        ) from error


def table_digests(table: NeighborTable) -> dict[str, str]:
    """Return the SHA-256 of each shard of a table."""
    shards = [part for part in table.parts if part.kind == "neighbors"]
    return {part.path.rpartition("/")[2].removesuffix(".parquet"): part.sha256 for part in shards}


def refuse_unusable(database: RetrievalDatabase, ids: NDArray[np.int64], stem: str) -> None:
    """Raise DatabaseError if neighbors [...] never existed or are deleted in this version."""
    count = database.version.next_patch_id
    if ids.size and not (ids.min() >= 0 and ids.max() < count):
        raise DatabaseError(
            f"neighbors of shard {stem} are the patches {ids.min()}..{ids.max()}, but ids "
            f"run from 0 to {count - 1}",
            where=database.folder.url,
            fix="the neighbors belong to another database: build them again with `rdm "
            "neighbors build`",
        )

    deleted = np.intersect1d(ids, database.tombstones)
    if len(deleted):
        raise DatabaseError(
            f"neighbors of shard {stem} are deleted patches, the first of {len(deleted)} is "
            f"{deleted[0]}",
            where=database.folder.url,
            fix="build the neighbors again with `rdm neighbors build`: what was deleted "
            "conditions nothing",
        )
