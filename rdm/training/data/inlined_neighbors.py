"""Neighbor embeddings inlined beside every tar of a latent cache, for remote storage.

By default training looks embeddings up in the database's memory maps, which means that the whole of
them lies on a local disk. Inlined, a shard is two files that are read from start to end, and the
database is asked for its version alone. What is inlined belongs to one state of a neighbor table:
after an update that changed the table it is refused until it is written again, shard by shard where
the shard changed, so that a deleted patch never conditions again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdm.compute.pool import Pool
from rdm.config import Config, digest_json
from rdm.database import NeighborTable, RetrievalDatabase
from rdm.errors import CacheError
from rdm.sources.workers import require_visible
from rdm.storage import Folder, ShardWork, resumable
from rdm.storage.verified import FileDigest, digest_file, npy_rows
from rdm.training.data.cache_neighbors import ids_of_crops, table_digests, table_of
from rdm.training.data.latent_cache import LatentCache

INFO_PATH = "neighbors.json"
STAGE = "inline-neighbors"
FORMAT_VERSION = 1


class InlinedInfo(Config):
    """`neighbors.json`: what was inlined, and from what."""

    format_version: int = FORMAT_VERSION
    cache_digest: str
    encoder_digest: str
    embedding_dim: int
    database_version: int
    k_stored: int
    table_sha256: dict[str, str]
    """Of the file in the database from which each shard was made, by stem."""
    files: dict[str, FileDigest]


@dataclass(frozen=True)
class InlineTask:
    """One shard to write: of which cache, and from which version of the database."""

    cache: str
    root: str
    version: int
    table: str
    stem: str
    key: str


def inlined_dtype(k: int, dim: int) -> np.dtype[Any]:
    """Return a crop's row: its neighbors' ids, norms and embeddings, nearest first."""
    return np.dtype(
        [("patch_ids", "<i8", (k,)), ("norms", "<f4", (k,)), ("vectors", "<f2", (k, dim))]
    )


def inline_shard(task: InlineTask) -> FileDigest:
    """Write `STEM.neighbors.npy`, a row for each crop in the latents' order; return its digest."""
    folder = Folder(task.cache)
    shard = ShardWork(folder, STAGE, task.stem, task.key, FileDigest)
    return resumable(shard, lambda: ([inlined_name(task.stem)], _write_rows(folder, task)))


def _write_rows(folder: Folder, task: InlineTask) -> FileDigest:
    database = RetrievalDatabase.open(task.root, version=task.version)
    table = NeighborTable(database.folder, task.table, database.version)
    keys = LatentCache(task.cache).rows(task.stem).column("key").to_pylist()
    # Each key once: a crop and its mirror image share their neighbors.
    ids = ids_of_crops(table, task.stem, list(dict.fromkeys(keys)))
    rows = np.empty(len(ids), inlined_dtype(ids.shape[1], database.version.embedding_dim))
    rows["patch_ids"], rows["vectors"] = ids, database.embeddings(ids)
    rows["norms"] = database.patch_rows(ids).column("norm").to_numpy().reshape(ids.shape)
    name = inlined_name(task.stem)
    with folder.writing(name) as path:
        with open(path, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        return digest_file(path)


def inline_neighbors(cache: str, root: str, pool: Pool) -> InlinedInfo:
    """Inline the neighbors of a database's current version; a rerun writes what changed.

    Raises:
        CacheError: there is no cache, or the database has no neighbors of its query set.
    """
    latents = LatentCache(cache)
    table, database = table_of(latents, root)
    digests = table_digests(table)
    require_visible(pool, latents.folder, others=(database.folder.url,))

    # Write a file for each shard whose rows or neighbors changed.
    tasks = [
        InlineTask(
            latents.folder.url,
            database.folder.url,
            database.version.number,
            table.name,
            stem,
            _key(latents, database, stem, digests.get(stem)),
        )
        for stem in latents.stems
    ]
    written = dict(pool.map(inline_shard, tasks, stage="inline neighbors", names=latents.stems))

    # Describe them last: readers compare the table with this.
    info = InlinedInfo(
        cache_digest=latents.digest,
        encoder_digest=database.encoder_digest,
        embedding_dim=database.version.embedding_dim,
        database_version=database.version.number,
        k_stored=table.config.k_stored,
        table_sha256=digests,
        files={inlined_name(stem): written[number] for number, stem in enumerate(latents.stems)},
    )
    latents.folder.write_json(INFO_PATH, info.model_dump(mode="json"))
    return info


class InlinedNeighbors:
    """Reads a cache's inlined neighbors, after a check that they are those of a table.

    Raises:
        CacheError: they belong to other latents or to another encoder, or the table has changed
            since.
    """

    def __init__(
        self, cache: LatentCache, database: RetrievalDatabase, table: NeighborTable
    ) -> None:
        self.cache = cache
        self.info = InlinedInfo.model_validate(cache.folder.read_json(INFO_PATH))
        again = (
            "run this cache's `rdm cache build ... --inline-neighbors "
            f"{database.folder.url}` again: it writes the "
            f"shards that changed. Or delete {INFO_PATH}, and the database's own embeddings "
            "are used"
        )

        # Refuse what belongs to other latents or another encoder.
        for what, have, want in (
            ("format", self.info.format_version, FORMAT_VERSION),
            ("latents", self.info.cache_digest, cache.digest),
            ("encoder", self.info.encoder_digest, database.encoder_digest),
            ("dimension", self.info.embedding_dim, database.version.embedding_dim),
        ):
            if have != want:
                raise CacheError(
                    f"the inlined neighbors belong to another {what}: {have}, not {want}",
                    where=cache.folder.describe(INFO_PATH),
                    fix=again,
                )

        # Refuse shards whose neighbors an update of the database has changed since.
        digests = table_digests(table)
        stale = [
            stem for stem in cache.stems if self.info.table_sha256.get(stem) != digests.get(stem)
        ]
        if stale:
            raise CacheError(
                f"the inlined neighbors are those of version {self.info.database_version}; "
                "in version "
                f"{database.version.number} of the database {len(stale)} of "
                f"{len(cache.stems)} shards have others",
                where=f"{cache.folder.url}, shard {stale[0]}",
                fix=again,
            )

    def shard(self, stem: str, num_crops: int) -> NDArray[Any]:
        """Return the rows of a shard's crops, see `inlined_dtype`; local ones are memory-mapped.

        Raises:
            CacheError: the file is missing or damaged, or has another shape.
        """
        name = inlined_name(stem)
        data = self.cache.read(name, self.info.files[name])
        dtype = inlined_dtype(self.info.k_stored, self.info.embedding_dim)
        try:
            return npy_rows(data, dtype, num_crops)
        except ValueError as error:
            raise CacheError(
                f"the inlined neighbors are not {self.info.k_stored} of "
                f"{self.info.embedding_dim} dimensions for each of {num_crops} crops: {error}",
                where=self.cache.folder.describe(name),
                fix="delete this file and run `rdm cache build ... --inline-neighbors DB` again",
            ) from error


def is_inlined(cache: LatentCache) -> bool:
    """Return whether neighbors are inlined in a cache."""
    return cache.folder.exists(INFO_PATH)


def inlined_name(stem: str) -> str:
    """Return the name of a shard's file."""
    return f"{stem}.neighbors.npy"


def _key(
    cache: LatentCache, database: RetrievalDatabase, stem: str, table_sha256: str | None
) -> str:
    # The rows of a shard change where a photograph can be read that could not be before.
    rows = cache.info.files[f"{stem}.parquet"].model_dump()
    return digest_json(
        [FORMAT_VERSION, cache.digest, database.encoder_digest, table_sha256, stem, rows]
    )
