"""Verify: recompute the digest of every part and the invariants of every table."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rdm.database.contract import (
    INDEX_NAME,
    PUBLISHED,
    SERVED_NAME,
    index_place,
    version_path,
    version_place,
)
from rdm.database.neighbors.lookup import look_up
from rdm.database.neighbors.table import NeighborConfig, NeighborTable, stored_lookup
from rdm.database.reader import RetrievalDatabase
from rdm.database.search.approximate import open_index
from rdm.database.search.exact import canonical_similarities
from rdm.database.search.recall import audit_sample
from rdm.database.verify.shard_invariants import Shard, open_shards
from rdm.errors import DatabaseError, RdmError
from rdm.progress import tracking
from rdm.storage import Folder, VersionStore, living_rows, part_rows, sha256_file

SIMILARITY_ROWS = 4096  # crops whose similarities are computed at once
AUDITED_ROWS = 16  # crops of each exact table that are looked up again


def verify_database(root: str, *, since: int | None = None) -> list[str]:
    """Return the findings, one sentence each that names the part; empty when all is well.

    Args:
        root: folder or URL of the database.
        since: an older version, whose parts are taken to be whole and are not read again. None, 0:
            everything is read.

    Raises:
        DatabaseError: the root is no database at all, or has no such version.
    """
    # First that every part is the one that was written.
    database = RetrievalDatabase.open(root)
    trusted = VersionStore(database.folder).require(since).parts if since else []
    new = [part for part in database.version.parts if part not in trusted]

    findings: list[str] = []
    with tracking("verify", len(new), "parts") as tracker:
        for part in new:
            findings += _check_part(database, part.path, part.sha256)
            tracker.advance()

    # Then what must hold between parts; damaged parts would only repeat themselves there.
    if not findings:
        paths = {part.path for part in new}
        findings += _check_version(database)
        findings += _check_index(database)
        findings += [sentence for shard in _shards(database, paths) for sentence in _told(shard)]
        for name in NeighborTable.names(database.folder, database.version):
            findings += _check_neighbors(database, name, paths)
    return findings


def require_sound(root: str, findings: list[str]) -> None:
    """Raise DatabaseError where `verify_database` found something."""
    if findings:
        more = f", and {len(findings) - 3} more" if len(findings) > 3 else ""
        raise DatabaseError(
            f"the database is damaged: {'; '.join(findings[:3])}{more}",
            where=root,
            fix="restore these files from a copy, or build again in a new folder",
        )


def _check_part(database: RetrievalDatabase, path: str, sha256: str) -> list[str]:
    if not database.folder.exists(path):
        return [f"{path} is missing"]
    if sha256_file(database.folder.local(path)) != sha256:
        return [f"{path} differs from its recorded digest"]
    return []


def _shards(database: RetrievalDatabase, paths: set[str]) -> Iterator[Shard]:
    """Yield the image shards of which a part is to be checked."""
    for shard in open_shards(database):
        if any(part.path in paths for part in shard.parts.values()):
            yield shard


def _told(shard: Shard) -> list[str]:
    """Return the findings of a shard; parts that cannot be read are a finding, too."""
    try:
        return list(shard.findings())
    except (RdmError, KeyError, ValueError, TypeError) as error:
        return [f"the shard of {shard.parts['images'].path} cannot be read: {error}"]


def _check_version(database: RetrievalDatabase) -> list[str]:
    """Return where the version contradicts its own parts: counts, ids, deleted photographs."""
    version, findings = database.version, []

    # Every patch id is a row, and every row an id.
    where = version_path(version.number)
    rows = sum(part.num_rows for part in version.parts_of("patches"))
    if not rows == version.num_patches == version.next_patch_id:
        counts = f"{version.num_patches} patches and next id {version.next_patch_id}"
        findings.append(f"{where} has {counts} for {rows} rows")

    # Tombstones ascend, and name rows that exist.
    tombstones = np.array(version.tombstones, np.int64)
    in_range = len(tombstones) == 0 or (
        tombstones[0] >= 0 and tombstones[-1] < version.next_patch_id
    )
    if not (np.all(np.diff(tombstones) > 0) and in_range):
        return [*findings, f"{where} deletes patches that do not exist, or one twice"]

    # Photographs with living patches are those that it counts, and none that was removed.
    images = _living_images(database)
    if len(images) != version.num_images:
        findings.append(
            f"{where} has {version.num_images} photographs for {len(images)} with living patches"
        )
    if alive := images.intersection(version.deleted_image_ids):
        findings.append(f"{where} has living patches of {min(alive)}, whose removal was asked for")
    return findings


def _living_images(database: RetrievalDatabase) -> set[str]:
    """Return the ids of photographs with a living patch."""
    images: set[str] = set()
    for rows in part_rows(database.version):
        names = database.folder.read_table(rows.part.path, ["image_id"])["image_id"]
        alive = living_rows(database.tombstones, rows.first, len(names))
        images.update(names.filter(alive).unique().to_pylist())
    return images


def _check_index(database: RetrievalDatabase) -> list[str]:
    """Return what is wrong with the index: its rows, its ids, or its published names."""
    findings, folder, version = [], database.folder, database.version
    path = version.parts_of("index")[0].path
    if version.index.num_vectors != version.num_live_patches:
        findings.append(
            f"{path} has {version.index.num_vectors} rows for {version.num_live_patches} patches"
        )
    elif not np.array_equal(_indexed_ids(database), database.living_ids()):
        findings.append(f"{path} holds other patches than the living ones")

    for part in (*version.parts_of("index"), *version.parts_of("infos")):
        name = part.path.rpartition("/")[2]
        for published in (f"{PUBLISHED}/{name}", *([SERVED_NAME] if name == INDEX_NAME else [])):
            # A writer publishes before it commits: a killed one leaves names that are whole, and
            # one version ahead.
            candidates = (part.path, f"{version_place(version.number + 1)}/{name}")
            if part.path != published and not any(
                _is_same_file(folder, published, path) for path in candidates
            ):
                findings += _check_part(database, published, part.sha256)
    return findings


def _indexed_ids(database: RetrievalDatabase) -> NDArray[np.int64]:
    """Return the sorted ids of everything in the version's index."""
    index = open_index(database.folder, index_place(database.version), database.version.index)
    lists: Any = faiss.extract_index_ivf(index).invlists
    ids = [
        faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n))
        for n in range(lists.nlist)
        if lists.list_size(n)
    ]
    return np.sort(np.concatenate(ids)) if ids else np.zeros(0, np.int64)


def _is_same_file(folder: Folder, first: str, second: str) -> bool:
    present = folder.is_local and folder.exists(first) and folder.exists(second)
    return present and folder.local(first).samefile(folder.local(second))


def _check_neighbors(database: RetrievalDatabase, name: str, paths: set[str]) -> list[str]:
    """Return what is wrong with a query set's table; one that cannot be read is a finding."""
    findings = []
    try:
        table = NeighborTable(database.folder, name, database.version)
        for stem in table.info.stems:
            if not paths.isdisjoint(table.paths(stem)):
                findings += _check_table_shard(database, table, stem)
    except (RdmError, KeyError, ValueError, TypeError) as error:
        findings.append(f"neighbors/{name} cannot be read: {error}")
    return findings


def _check_table_shard(database: RetrievalDatabase, table: NeighborTable, stem: str) -> list[str]:
    """Return the first thing that is wrong with one shard of a table."""
    (path, queries_path), version = table.paths(stem), database.version
    rows, queries = table.table(stem), table.embeddings(stem)
    stored = stored_lookup(rows, table.config.k_stored)
    (ids, similarities), excluded = stored.neighbors, stored.excluded[0]

    every = np.concatenate([ids.ravel(), excluded[excluded >= 0]])
    # The cheap checks first: counts, ids, order, deleted patches.
    if len(queries) != rows.num_rows:
        return [f"{queries_path} has {len(queries)} rows for {rows.num_rows} crops"]
    if len(every) and (every.min() < 0 or every.max() >= version.next_patch_id):
        return [f"{path} names patches that do not exist"]
    if np.any(np.diff(similarities, axis=1) > 0):
        return [f"{path} is not sorted by similarity"]
    if np.isin(every, database.tombstones).any():
        return [f"{path} names deleted patches"]

    # Then the similarities of all crops, and the neighbors of a few.
    if not _similarities_hold(database, queries, ids, similarities):
        return [f"{path} holds similarities that are not those of its crops and patches"]
    if not _audit_holds(database, table.config, rows, queries, ids):
        return [f"{path} does not hold the nearest patches"]
    return []


def _similarities_hold(
    database: RetrievalDatabase,
    queries: NDArray[np.float16],
    ids: NDArray[np.int64],
    similarities: NDArray[np.float32],
) -> bool:
    """Return whether all stored similarities, computed again, are equal bit for bit."""
    for start in range(0, len(ids), SIMILARITY_ROWS):
        rows = slice(start, start + SIMILARITY_ROWS)
        again = canonical_similarities(np.asarray(queries[rows]), database.embeddings(ids[rows]))
        if not np.array_equal(again, similarities[rows]):
            return False
    return True


def _audit_holds(
    database: RetrievalDatabase,
    config: NeighborConfig,
    rows: pa.Table,
    queries: NDArray[np.float16],
    ids: NDArray[np.int64],
) -> bool:
    """Return whether a few crops of an exact table, looked up again, have their neighbors."""
    sample = np.sort(audit_sample(np.arange(len(ids), dtype=np.int64), AUDITED_ROWS, seed=0))
    if not config.exact or len(sample) == 0:
        return True
    found = look_up(database, np.ascontiguousarray(queries[sample]), rows.take(sample), config)
    return np.array_equal(found.neighbors[0], ids[sample])
