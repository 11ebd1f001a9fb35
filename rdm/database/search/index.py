"""The approximate index: chosen by autofaiss, built in shards, audited against exact search."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.pool import Pool
from rdm.config import Record
from rdm.database.contract import INDEX_NAME, INFOS_NAME, PUBLISHED, SERVED_NAME
from rdm.database.embedding_parts import since
from rdm.database.search.approximate import check_head
from rdm.database.search.index_settings import IndexConfig, choose_key, train_rows
from rdm.database.search.recall import Recall, audit_recall, audit_sample
from rdm.database.search.search_parameters import open_mapped, set_parameters, write_parameters
from rdm.database.search.sharded_index import (
    IndexedRows,
    add_rows,
    build_sharded,
    head_bytes,
    one_thread,
    write_index,
)
from rdm.errors import DatabaseError, StorageError
from rdm.storage import Folder, IndexDecision, IndexFacts
from rdm.storage.atomic import storage_errors


class IndexBuild(Record):
    """The facts that an index keeps while it is extended, and the last decision about it."""

    index_key: str
    index_param: str
    built_num_vectors: int
    built_recall_at_20: float
    decision: IndexDecision


@dataclass(frozen=True)
class ParentIndex:
    """The index of the version before, and the changes to its rows."""

    place: str
    facts: IndexFacts
    first_added: int
    newly_dead: NDArray[np.int64]


def build_index(
    rows: IndexedRows,
    config: IndexConfig,
    place: str = PUBLISHED,
    reason: str = "there was none",
    pool: Pool | None = None,
) -> IndexFacts:
    """Build `knn.index` over the living rows, under their patch ids; return its facts.

    Args:
        rows: the rows to index.
        config: the settings.
        place: the folder for the two files.
        reason: why it is built, for `index_infos.json`.
        pool: where shards are filled; None: in this process.

    Raises:
        DatabaseError: there is no row, no index fits into the memory, or recall@20 is under
            `min_recall`.
    """
    folder, target = rows.folder, f"{place}/{INDEX_NAME}"
    living = rows.living
    if len(living) == 0:
        raise DatabaseError(
            "there is nothing to index: no patch is left",
            where=folder.url,
            fix="add photographs to the source",
        )

    # Train on a sample, fill and merge the shards, then write the search parameters into the file.
    # A killed run leaves a temporary file only: `writing` renames it at the end.
    key = choose_key(len(living), rows.parts[0][1].shape[1], config)
    with storage_errors(folder.describe(target)):
        sample = audit_sample(
            living, train_rows(key, rows.parts[0][1].shape[1], config), config.seed + 2
        )
        with _pool(pool) as workers, folder.writing(target) as path:
            build_sharded(rows, key, sample, path, config.shard_rows, workers)
            parameters = _tune(open_mapped(path), rows, config)
            write_parameters(path, parameters)

    # Measure the file as readers will open it; an index that finds too little is not kept.
    index = open_mapped(folder.local(target))
    audit = audit_recall(index, rows.parts, rows.tombstones, config.audit_queries, config.seed)
    if audit.recall_at_20 < config.min_recall:
        folder.delete(target)
        raise _low_recall(audit.recall_at_20, config, folder.describe(target))

    build = IndexBuild(
        index_key=key,
        index_param=parameters,
        built_num_vectors=int(index.ntotal),
        built_recall_at_20=audit.recall_at_20,
        decision=IndexDecision(action="built", reason=reason),
    )
    return _describe(folder, place, index, build, audit)


def _low_recall(recall: float, config: IndexConfig, where: str) -> DatabaseError:
    return DatabaseError(
        f"the index finds {recall:.3f} of the 20 nearest, under min_recall {config.min_recall}",
        where=where,
        fix="raise index.max_index_memory, or lower index.min_recall",
    )


@contextmanager
def _pool(pool: Pool | None) -> Iterator[Pool]:
    """Yield the given pool, or else one that computes in this process."""
    if pool is not None:
        yield pool
        return
    with compute_pool(ComputeConfig(dask="inline")) as inline:
        yield inline


def update_index(
    rows: IndexedRows,
    config: IndexConfig,
    place: str,
    parent: ParentIndex,
    pool: Pool | None = None,
) -> IndexFacts:
    """Make a version's index from its parent's; build it anew where that is not enough.

    The decision and its reason are in the infos.
    """
    # Open the parent's. The index is a cache: one that cannot be read is built.
    folder, parts, tombstones = rows.folder, rows.parts, rows.tombstones
    try:
        check_head(folder, parent.place, parent.facts)
        index = faiss.read_index(str(folder.local(f"{parent.place}/{INDEX_NAME}")))
    except (RuntimeError, OSError, StorageError):
        return build_index(rows, config, place, "the parent version's cannot be read", pool)

    # Take out the dead and add the new, in the pieces and with the one thread of a build.
    if len(parent.newly_dead):
        index.remove_ids(faiss.IDSelectorBatch(parent.newly_dead))
    with one_thread():
        for first, vectors in since(parts, parent.first_added):
            add_rows(index, first, vectors, tombstones)

    # Extended lists grow uneven, and centroids stale: measure, and build anew past the margins.
    audit = audit_recall(index, parts, tombstones, config.audit_queries, config.seed)
    if reason := rebuild_reason(parent.facts, audit.recall_at_20, int(index.ntotal), config):
        return build_index(rows, config, place, reason, pool)

    with folder.writing(f"{place}/{INDEX_NAME}") as path:
        write_index(index, path, folder.describe(f"{place}/{INDEX_NAME}"))
    reason = f"recall@20 was {parent.facts.recall_at_20:.4f} and is {audit.recall_at_20:.4f}"
    build = IndexBuild(
        index_key=parent.facts.index_key,
        index_param=parent.facts.index_param,
        built_num_vectors=parent.facts.built_num_vectors,
        built_recall_at_20=parent.facts.built_recall_at_20,
        decision=IndexDecision(action="extended", reason=reason),
    )
    return _describe(folder, place, index, build, audit)


def rebuild_reason(parent: IndexFacts, recall: float, num_vectors: int, config: IndexConfig) -> str:
    """Return why an updated index must be built anew; empty if it need not.

    Args:
        parent: the index of the version before.
        recall: recall@20 of the updated index on the audit sample.
        num_vectors: its rows.
        config: the margins.
    """
    # The build's recall counts, too: a fall by many small steps is a fall.
    before = max(parent.recall_at_20, parent.built_recall_at_20)
    if recall < before - config.drift_margin:
        return (
            f"recall@20 fell from {before:.4f} to {recall:.4f}, by more than drift_margin "
            f"{config.drift_margin}"
        )
    if recall < config.min_recall:
        return f"recall@20 of {recall:.4f} is under min_recall {config.min_recall}"

    # The number of lists suits the rows of the build: with many more, lists are slow to search.
    factor = num_vectors / parent.built_num_vectors
    if not 1 / config.max_growth <= factor <= config.max_growth:
        return f"it was built for {parent.built_num_vectors} rows and holds {num_vectors}"
    return ""


def publish_index(folder: Folder, place: str) -> None:
    """Give a version's index the names under which clip-retrieval's tools look for one."""
    for name in (INDEX_NAME, INFOS_NAME):
        folder.link(f"{place}/{name}", f"{PUBLISHED}/{name}")
    folder.link(f"{place}/{INDEX_NAME}", SERVED_NAME)


def drop_indexes(folder: Folder, kept: Collection[str]) -> None:
    """Delete all versions' index files except the kept folders. Open memory maps survive."""
    for name in folder.names(PUBLISHED):
        if name.isdigit() and f"{PUBLISHED}/{name}" not in kept:
            folder.delete(f"{PUBLISHED}/{name}")


def _describe(
    folder: Folder, place: str, index: faiss.Index, build: IndexBuild, audit: Recall
) -> IndexFacts:
    """Write and return `index_infos.json` of an index whose file stands."""
    num_bytes = folder.size(f"{place}/{INDEX_NAME}")

    # The head, which faiss must be able to trust, has its own digest: it is checked at every open.
    head = head_bytes(index, num_bytes)
    with open(folder.local(f"{place}/{INDEX_NAME}"), "rb") as file:
        digest = hashlib.sha256(file.read(head)).hexdigest()

    # What was built, and what was measured of it.
    facts = IndexFacts(
        index_key=build.index_key,
        index_param=build.index_param,
        num_vectors=int(index.ntotal),
        dim=int(index.d),
        num_bytes=num_bytes,
        head_bytes=head,
        head_sha256=digest,
        recall_at_20=audit.recall_at_20,
        recall_ci95=audit.recall_ci95,
        audit_queries=audit.audit_queries,
        built_num_vectors=build.built_num_vectors,
        built_recall_at_20=build.built_recall_at_20,
        decision=build.decision,
    )
    folder.write_record(f"{place}/{INFOS_NAME}", facts)
    return facts


def _tune(index: faiss.Index, rows: IndexedRows, config: IndexConfig) -> str:
    """Probe the least power of two of lists that reaches `target_recall`; return the parameters.

    Measured on other rows than those of the audit, so that the audit stays honest.
    """
    # Every doubling is measured; with all lists probed there is nothing more to gain.
    lists, probed = faiss.extract_index_ivf(index).nlist, 1
    while True:
        parameters = f"nprobe={probed}"
        # The graph over the centroids must look at more of them than are probed.
        if _has_graph(index):
            parameters += f",quantizer_efSearch={max(2 * probed, 16)}"

        set_parameters(index, parameters)
        found = audit_recall(
            index, rows.parts, rows.tombstones, config.audit_queries, config.seed + 1
        )

        if found.recall_at_20 >= config.target_recall or probed == lists:
            return parameters
        probed = min(2 * probed, lists)


def _has_graph(index: faiss.Index) -> bool:
    quantizer = faiss.downcast_index(faiss.extract_index_ivf(index).quantizer)
    return isinstance(quantizer, faiss.IndexHNSW)
