"""The approximate index: chosen by autofaiss, built in shards, audited against exact search."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.pool import Pool
from rdm.config import ByteSize, Config, Record, parse_bytes
from rdm.database.contract import INDEX_NAME, INFOS_NAME, PUBLISHED, SERVED_NAME
from rdm.database.embedding_parts import EmbeddingParts, count_rows, gather, since
from rdm.database.search.exact import blocks_of, exact_search, quantize
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
from rdm.storage.files import read_error, storage_errors

LARGE_ROWS = 1_000_000
TRAIN_ROWS_PER_LIST = 64


class IndexConfig(Config):
    """How the index is built and what it must reach."""

    max_index_memory: ByteSize = Field(
        default="8GB", description="greatest size of the index, such as 8GB"
    )
    build_memory: ByteSize = Field(
        default="4GB", description="memory for the rows that the index is trained on"
    )
    shard_rows: int = Field(
        default=1_000_000, ge=1, description="rows that one worker adds to its shard of the index"
    )
    target_recall: float = Field(
        default=0.98, ge=0, le=1, description="recall@20 up to which more lists are probed"
    )
    min_recall: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="recall@20 against exact search under which the build fails",
    )
    audit_queries: int = Field(
        default=500, ge=1, description="database rows that the recall is measured on"
    )
    seed: int = Field(default=0, description="chooses the audited rows")
    drift_margin: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="recall@20 may fall by so much in updates before the index is built anew",
    )
    max_growth: float = Field(
        default=2,
        gt=1,
        description="the rows may grow or shrink by this factor before the index is built anew",
    )
    keep_versions: int = Field(
        default=3,
        ge=2,
        description="versions that keep an index file; readers of older ones compare with "
        "every vector",
    )


class Recall(Record):
    """Recall@20 on the audited rows, with the half-width of its 95% interval (normal, over
    queries)."""

    recall_at_20: float
    recall_ci95: float
    audit_queries: int


class IndexBuild(Record):
    """What an index keeps while it is extended, and what was decided last."""

    index_key: str
    index_param: str
    built_num_vectors: int
    built_recall_at_20: float
    decision: IndexDecision


@dataclass(frozen=True)
class ParentIndex:
    """The index of the version before, and what its rows need to become this version's."""

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
    """Build `knn.index` over the living rows, under their patch ids; write and return
    `index_infos.json`.

    Args:
        rows: what is indexed.
        config: how.
        place: the folder for the two files.
        reason: why it is built, for the infos.
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
    key = choose_key(len(living), rows.parts[0][1].shape[1], config)
    with storage_errors(folder.describe(target)):
        sample = audit_sample(
            living, train_rows(key, rows.parts[0][1].shape[1], config), config.seed + 2
        )
        with _pool(pool) as workers, folder.writing(target) as path:
            build_sharded(rows, key, sample, path, config.shard_rows, workers)
            parameters = _tune(open_mapped(path), rows, config)
            write_parameters(path, parameters)
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


def check_fits(num_rows: int, dim: int, config: IndexConfig) -> None:
    """Raise DatabaseError where no index of so many vectors fits into the memory that the settings
    allow."""
    if num_rows:
        train_rows(choose_key(num_rows, dim, config), dim, config)


def choose_key(num_rows: int, dim: int, config: IndexConfig) -> str:
    """Return the kind of index, as faiss names it: the most exact one that `max_index_memory`
    allows.

    Below `LARGE_ROWS` rows it is autofaiss's choice. From there on autofaiss quantizes products
    (OPQ, PQ) however much memory there is; here that comes last, after vectors in 32, 16 and 8 bits
    per number.

    Raises:
        DatabaseError: nothing fits.
    """
    from autofaiss.external.optimize import get_optimal_index_keys_v2

    memory = parse_bytes(config.max_index_memory)
    if num_rows >= LARGE_ROWS:
        lists = 2 ** round(math.log2(4 * math.sqrt(num_rows)))
        for codes, code_bytes in (("Flat", 4 * dim), ("SQfp16", 2 * dim), ("SQ8", dim)):
            if num_rows * (code_bytes + 8) + lists * 4 * (dim + 64) <= memory:
                return f"IVF{lists}_HNSW32,{codes}"
    keys = get_optimal_index_keys_v2(num_rows, dim, f"{memory}B", should_be_memory_mappable=True)
    if keys and (",PQ" in keys[0] or num_rows * (4 * dim + 8) <= memory):
        return keys[0]
    raise DatabaseError(
        f"no index of {num_rows} vectors fits into {config.max_index_memory}: too little memory",
        fix="raise index.max_index_memory",
    )


def train_rows(key: str, dim: int, config: IndexConfig) -> int:
    """Return how many random rows an index is trained on: `TRAIN_ROWS_PER_LIST` per list, as far as
    they fit.

    Raises:
        DatabaseError: there is no memory for one row per list.
    """
    match = re.search(r"IVF(\d+)", key)
    lists = int(match[1]) if match else 1
    # in float32, and a copy of it where they are rotated
    fitting = parse_bytes(config.build_memory) // (8 * dim)
    if fitting < lists:
        raise DatabaseError(
            f"too little memory to train {lists} lists: index.build_memory is "
            f"{config.build_memory}",
            fix="raise index.build_memory",
        )
    return min(lists * TRAIN_ROWS_PER_LIST, fitting)


@contextmanager
def _pool(pool: Pool | None) -> Iterator[Pool]:
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
    """Make a version's index from its parent's: the dead removed, the new added; build it where
    that is too little.

    What was decided, and why, is in the infos under `decision`.
    """
    folder, parts, tombstones = rows.folder, rows.parts, rows.tombstones
    try:
        check_head(folder, parent.place, parent.facts)
        index = faiss.read_index(str(folder.local(f"{parent.place}/{INDEX_NAME}")))
    except (
        RuntimeError,
        OSError,
        StorageError,
    ):  # the index is a cache: what cannot be read is built
        return build_index(rows, config, place, "the parent version's cannot be read", pool)
    if len(parent.newly_dead):
        index.remove_ids(faiss.IDSelectorBatch(parent.newly_dead))
    with one_thread():
        for first, vectors in since(parts, parent.first_added):
            add_rows(index, first, vectors, tombstones)
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
    """Return why an updated index must be built anew; empty where it need not.

    Args:
        parent: the index of the version before.
        recall: recall@20 of the updated index on the audit sample.
        num_vectors: its rows.
        config: the margins.
    """
    before = max(parent.recall_at_20, parent.built_recall_at_20)
    if recall < before - config.drift_margin:
        return (
            f"recall@20 fell from {before:.4f} to {recall:.4f}, by more than drift_margin "
            f"{config.drift_margin}"
        )
    if recall < config.min_recall:
        return f"recall@20 of {recall:.4f} is under min_recall {config.min_recall}"
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
    """Delete the index files of versions but those in the kept folders. Open memory maps are not
    disturbed."""
    for name in folder.names(PUBLISHED):
        if name.isdigit() and f"{PUBLISHED}/{name}" not in kept:
            folder.delete(f"{PUBLISHED}/{name}")


def _describe(
    folder: Folder, place: str, index: faiss.Index, build: IndexBuild, audit: Recall
) -> IndexFacts:
    """Write and return `index_infos.json` of an index whose file stands."""
    num_bytes = folder.size(f"{place}/{INDEX_NAME}")
    head = head_bytes(index, num_bytes)
    with open(folder.local(f"{place}/{INDEX_NAME}"), "rb") as file:
        digest = hashlib.sha256(file.read(head)).hexdigest()
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


def check_head(folder: Folder, place: str, facts: IndexFacts) -> None:
    """Raise StorageError unless an index file has its size, and the head its digest; faiss crashes
    on damage there.

    The lists that follow may be large and are left to `verify`: whatever bytes are in them,
    searching is safe.
    """
    path = f"{place}/{INDEX_NAME}"
    with open(folder.local(path), "rb") as file:
        whole = hashlib.sha256(file.read(facts.head_bytes)).hexdigest() == facts.head_sha256
    if not whole or folder.size(path) != facts.num_bytes:
        raise StorageError(
            "the index is damaged", where=folder.describe(path), fix="run `rdm database verify`"
        )


def _tune(index: faiss.Index, rows: IndexedRows, config: IndexConfig) -> str:
    """Probe the least power of two of lists that reaches `target_recall`; return that setting as
    faiss writes it.

    Measured on other rows than those of the audit, so that the audit stays honest.
    """
    lists, probed = faiss.extract_index_ivf(index).nlist, 1
    while True:
        parameters = f"nprobe={probed}" + (
            f",quantizer_efSearch={max(2 * probed, 16)}" if _has_graph(index) else ""
        )
        set_parameters(index, parameters)
        found = audit_recall(
            index, rows.parts, rows.tombstones, config.audit_queries, config.seed + 1
        )
        if found.recall_at_20 >= config.target_recall or probed == lists:
            return parameters
        probed = min(2 * probed, lists)


def _has_graph(index: faiss.Index) -> bool:
    return isinstance(
        faiss.downcast_index(faiss.extract_index_ivf(index).quantizer), faiss.IndexHNSW
    )


def open_index(
    folder: Folder, place: str = PUBLISHED, facts: IndexFacts | None = None
) -> faiss.Index:
    """Open an index memory-mapped; its file holds its search parameters.

    Args:
        folder: the database's.
        place: the index's folder.
        facts: what a version says of the index; None: what the file beside it says.

    Raises:
        StorageError: it is missing or damaged.
    """
    path = f"{place}/{INDEX_NAME}"
    try:
        known = facts or folder.read_record(f"{place}/{INFOS_NAME}", IndexFacts)
        check_head(folder, place, known)
        return open_mapped(folder.local(path))
    except (RuntimeError, OSError) as error:
        raise read_error(error, folder.describe(path)) from error


def approximate_candidates(
    index: faiss.Index, queries: NDArray[np.floating], k: int
) -> NDArray[np.int64]:
    """Return candidate ids [B, k] of an index, which holds no deleted patch; -1 where there are
    fewer."""
    return index.search(np.ascontiguousarray(queries, np.float32), k)[1]


def audit_recall(
    index: faiss.Index,
    parts: EmbeddingParts,
    tombstones: NDArray[np.int64],
    num_queries: int,
    seed: int,
) -> Recall:
    """Return recall@20 on random living rows.

    A row's own id counts like any other, as it does for every query.
    """
    living = np.delete(np.arange(count_rows(parts), dtype=np.int64), tombstones)
    k = min(20, len(living))
    chosen = audit_sample(living, num_queries, seed)
    queries = quantize(gather(parts, chosen))
    truth, _ = exact_search(queries, blocks_of(parts), k, excluded=tombstones)
    found = approximate_candidates(index, queries, k)
    recalls = np.array([len(np.intersect1d(t, f)) / k for t, f in zip(truth, found, strict=True)])
    half = 1.96 * recalls.std(ddof=1) / math.sqrt(len(recalls)) if len(recalls) > 1 else 0.0
    return Recall(
        recall_at_20=float(recalls.mean()), recall_ci95=float(half), audit_queries=len(chosen)
    )


def audit_sample(living: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the ids with the least hash of (seed, id): an update changes the sample by what it
    adds and deletes only.

    The hash is the finalizer of SplitMix64 (Steele et al. 2014).
    """
    mixed = living.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return living[np.argsort(mixed, kind="stable")[:count]]
