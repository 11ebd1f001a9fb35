"""Verify: recompute the digest of every part and the invariants of every table."""

from __future__ import annotations

import numpy as np

from rdm.database.facade import RetrievalDatabase
from rdm.database.index import INDEX_NAME, PUBLISHED, SERVED_NAME, version_place
from rdm.database.neighbor_table import NeighborTable
from rdm.errors import RdmError
from rdm.progress import tracking
from rdm.storage import Folder, sha256_file


def verify_database(root: str) -> list[str]:
    """Return what is wrong, one sentence per finding that names the part; empty when all is well.

    Raises:
        DatabaseError: the root is no database at all.
    """
    database = RetrievalDatabase.open(root)
    findings: list[str] = []
    with tracking("verify", len(database.version.parts), "parts") as tracker:
        for part in database.version.parts:
            findings += _check_part(database, part.path, part.sha256)
            tracker.advance()
    if not findings:
        findings += _check_index(database)
        findings += _check_embeddings(database)
        for name in NeighborTable.names(database.folder, database.version):
            findings += _check_neighbors(database, name)
    return findings


def _check_part(database: RetrievalDatabase, path: str, sha256: str) -> list[str]:
    if not database.folder.exists(path):
        return [f"{path} is missing"]
    return [] if sha256_file(database.folder.local(path)) == sha256 else [f"{path} differs from its recorded digest"]


def _check_index(database: RetrievalDatabase) -> list[str]:
    findings, folder, version = [], database.folder, database.version
    if version.index["num_vectors"] != version.num_live_patches:
        rows = f"{version.index['num_vectors']} rows for {version.num_live_patches} patches"
        findings.append(f"{version.parts_of('index')[0].path} has {rows}")
    for part in (*version.parts_of("index"), *version.parts_of("infos")):
        name = part.path.rpartition("/")[2]
        for published in (f"{PUBLISHED}/{name}", *([SERVED_NAME] if name == INDEX_NAME else [])):
            # A writer publishes before it commits: what a killed one published is whole, and one version ahead.
            candidates = (part.path, f"{version_place(version.number + 1)}/{name}")
            if part.path != published and not any(_is_same_file(folder, published, path) for path in candidates):
                findings += _check_part(database, published, part.sha256)
    return findings


def _is_same_file(folder: Folder, first: str, second: str) -> bool:
    present = folder.is_local and folder.exists(first) and folder.exists(second)
    return present and folder.local(first).samefile(folder.local(second))


def _check_embeddings(database: RetrievalDatabase) -> list[str]:
    findings = []
    for first, vectors in database.parts:
        alive = np.isin(np.arange(first, first + len(vectors)), database.tombstones, invert=True)
        norms = np.linalg.norm(np.asarray(vectors[alive], np.float32), axis=1)
        if not np.all(np.abs(norms - 1) < 2e-3):
            findings.append(f"the embedding part that starts at patch {first} has vectors that are not unit vectors")
    return findings


def _check_neighbors(database: RetrievalDatabase, name: str) -> list[str]:
    findings = []
    try:
        table = NeighborTable(database.folder, name, database.version)
        for stem in table.info["stems"]:
            path, (_, ids, similarities) = table.paths(stem)[0], table.shard(stem)
            excluded = table.excluded(stem)[0]
            ids = np.concatenate([ids.ravel(), excluded[excluded >= 0]])
            if len(ids) and (ids.min() < 0 or ids.max() >= database.version.next_patch_id):
                findings.append(f"{path} names patches that do not exist")
            if np.any(np.diff(similarities, axis=1) > 0):
                findings.append(f"{path} is not sorted by similarity")
            if table.info["database_version"] == database.version.number and np.isin(ids, database.tombstones).any():
                findings.append(f"{path} names deleted patches")
    except (RdmError, KeyError, ValueError) as error:
        findings.append(f"neighbors/{name} cannot be read: {error}")
    return findings
