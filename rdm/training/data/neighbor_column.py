"""Neighbor embeddings of a cache's rows: from a database's memory maps, or inlined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdm.database import NeighborTable, RetrievalDatabase
from rdm.errors import CacheError
from rdm.generators.conditions import NeighborsConfig
from rdm.generators.neighbor_vectors import conditioning_vectors, with_norms
from rdm.training.data.cache_neighbors import ids_of_crops, refuse_unusable, table_of
from rdm.training.data.inlined_neighbors import InlinedNeighbors, is_inlined
from rdm.training.data.latent_cache import LatentCache
from rdm.training.data.training_data import ShardRows


@dataclass(frozen=True)
class NeighborColumn:
    """`neighbors` float16 [N, k, D]: the same bits from a database and inlined.

    Attributes:
        cache: whose rows.
        database: at the version that the table belongs to.
        table: the ids.
        config: which embeddings.
        k: of the nearest neighbors that are loaded.
        inlined: the embeddings in the cache, where they are.
    """

    cache: LatentCache
    database: RetrievalDatabase
    table: NeighborTable
    config: NeighborsConfig
    k: int
    inlined: InlinedNeighbors | None = None

    @classmethod
    def open(
        cls, cache: LatentCache, root: str, config: NeighborsConfig, *, held_out: bool = False
    ) -> NeighborColumn:
        """Open a database's neighbors of a cache's query set, at the version that they belong to.

        What is held out gets the k_train nearest; training loads what its steps draw from.

        Args:
            cache: whose crops have neighbors.
            root: of the database.
            config: how many neighbors are read, and which train.
            held_out: whether the rows are for measuring.

        Raises:
            CacheError: the database has no neighbors of this query set, or too few per crop; those
                that are inlined in the cache are others.
            DatabaseError: it has several tables of it that exclude different patches.
        """
        table, pinned = table_of(cache, root)
        if (stored := table.config.k_stored) < config.num_loaded:
            raise CacheError(
                f"training takes {config.num_loaded} neighbors, but {stored} are stored",
                where=root,
                fix="lower objective.conditions.neighbors.k_train or .pool, or build the "
                "neighbors again with a "
                "larger k_stored",
            )

        inlined = InlinedNeighbors(cache, pinned, table) if is_inlined(cache) else None
        return cls(
            cache, pinned, table, config, config.k_train if held_out else config.num_loaded, inlined
        )

    def load(self, stem: str, rows: ShardRows) -> dict[str, NDArray[Any]]:
        """See Column: what conditions the network, of patches that live in the pinned version.

        Raises:
            CacheError: a file is missing or damaged.
            DatabaseError: a neighbor is a patch that never was, or that was deleted.
        """
        if self.inlined is None:
            ids = self.ids(stem, rows)
            refuse_unusable(self.database, ids, stem)
            return {"neighbors": conditioning_vectors(self.database, ids, self.config.embedding)}
        stored = self.inlined.shard(stem, rows.num_crops)
        # Inlined embeddings outlive a deletion in the database, but must not condition after it.
        refuse_unusable(self.database, stored["patch_ids"][:, : self.k], stem)
        unit = stored["vectors"][:, : self.k][rows.crops]
        raw = self.config.embedding == "raw"
        return {
            "neighbors": with_norms(unit, stored["norms"][rows.crops, : self.k]) if raw else unit
        }

    def ids(self, stem: str, rows: ShardRows) -> NDArray[np.int64]:
        """Return the neighbors [N, k] of rows of a shard, nearest first, from the database."""
        keys = self.cache.rows(stem).column("key").to_pylist()
        of_crops = ids_of_crops(self.table, stem, list(dict.fromkeys(keys)))
        return of_crops[rows.crops, : self.k]
