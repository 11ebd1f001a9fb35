"""The approximate index: built by autofaiss, audited against exact search, searched without tombstones."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.config import Config, parse_bytes
from rdm.database.parts import EmbeddingParts, count_rows, gather, since
from rdm.database.search import blocks_of, exact_search, quantize
from rdm.errors import DatabaseError, StorageError
from rdm.storage import Folder, Version
from rdm.storage.files import read_error

INDEX_NAME, INFOS_NAME = "knn.index", "index_infos.json"
PUBLISHED = "index"  # where clip-retrieval's and autofaiss's tools look: the newest version's files under a second name
SERVED_NAME = "image.index"  # where `clip-retrieval back` looks for the same index: beside `metadata/`


class IndexConfig(Config):
    """How the index is built and what it must reach."""

    max_index_memory: str = Field(default="8GB", description="greatest size of the index, such as 8GB")
    build_memory: str = Field(default="4GB", description="memory that building may use beside the index itself")
    target_recall: float = Field(default=0.98, ge=0, le=1, description="recall@20 up to which more lists are probed")
    min_recall: float = Field(
        default=0.8, ge=0, le=1, description="recall@20 against exact search under which the build fails"
    )
    audit_queries: int = Field(default=500, ge=1, description="database rows that the recall is measured on")
    seed: int = Field(default=0, description="chooses the audited rows")
    drift_margin: float = Field(
        default=0.02, ge=0, le=1, description="recall@20 may fall by so much in updates before the index is built anew"
    )
    max_growth: float = Field(
        default=2, gt=1, description="the rows may grow or shrink by this factor before the index is built anew"
    )
    keep_versions: int = Field(
        default=3, ge=2, description="versions that keep an index file; readers of older ones compare with every vector"
    )


@dataclass(frozen=True)
class ParentIndex:
    """The index of the version before, and what its rows need to become this version's."""

    place: str
    infos: dict[str, Any]
    first_added: int
    newly_dead: NDArray[np.int64]


def index_place(version: Version) -> str:
    """Return the folder that holds a version's index."""
    return version.parts_of("index")[0].path.rpartition("/")[0]


def version_place(number: int) -> str:
    """Return the folder for an index that a version of this number makes."""
    return f"{PUBLISHED}/{number:06d}"


def build_index(
    folder: Folder,
    parts: EmbeddingParts,
    tombstones: NDArray[np.int64],
    config: IndexConfig,
    place: str = PUBLISHED,
    reason: str = "there was none",
) -> dict[str, Any]:
    """Build `knn.index` over the living rows, under their patch ids; write and return `index_infos.json`.

    Raises:
        DatabaseError: autofaiss built nothing (too little memory), or recall@20 is under `min_recall`.
    """
    index, found = _autofaiss(parts, tombstones, config)
    if index is None or found is None:  # autofaiss says so without an exception
        raise DatabaseError(
            "autofaiss built no index: too little memory",
            where=folder.describe(f"{place}/{INDEX_NAME}"),
            fix="raise index.build_memory or index.max_index_memory",
        )
    if len(tombstones):
        _renumber(index, living_ids(parts, tombstones))
    parameters = _tune(index, parts, tombstones, config)
    audit = audit_recall(index, parts, tombstones, config.audit_queries, config.seed)
    if audit["recall_at_20"] < config.min_recall:
        raise DatabaseError(
            f"the index finds {audit['recall_at_20']:.3f} of the 20 nearest, under min_recall {config.min_recall}",
            where=folder.describe(f"{place}/{INDEX_NAME}"),
            fix="raise index.max_index_memory, or lower index.min_recall",
        )
    infos = {
        "index_key": str(found["index_key"]),
        "index_param": parameters,
        "built_num_vectors": int(index.ntotal),
        "built_recall_at_20": audit["recall_at_20"],
        "decision": {"action": "built", "reason": reason},
    }
    return _write(folder, place, index, {**infos, **audit})


def update_index(
    folder: Folder,
    parts: EmbeddingParts,
    tombstones: NDArray[np.int64],
    config: IndexConfig,
    place: str,
    parent: ParentIndex,
) -> dict[str, Any]:
    """Make a version's index from its parent's: the dead removed, the new added; build it where that is too little.

    What was decided, and why, is in the infos under `decision`.
    """
    try:
        index = faiss.read_index(str(folder.local(f"{parent.place}/{INDEX_NAME}")))
    except (RuntimeError, OSError):  # the index is a cache: what cannot be read is built
        return build_index(folder, parts, tombstones, config, place, "the parent version's cannot be read")
    if len(parent.newly_dead):
        index.remove_ids(faiss.IDSelectorBatch(parent.newly_dead))
    for first, vectors in since(parts, parent.first_added):
        if len(vectors):
            ids = np.arange(first, first + len(vectors), dtype=np.int64)
            index.add_with_ids(np.asarray(vectors, np.float32), ids)
    faiss.ParameterSpace().set_index_parameters(index, parent.infos["index_param"])
    audit = audit_recall(index, parts, tombstones, config.audit_queries, config.seed)
    if reason := rebuild_reason(parent.infos, audit["recall_at_20"], int(index.ntotal), config):
        return build_index(folder, parts, tombstones, config, place, reason)
    decision = {
        "action": "extended",
        "reason": f"recall@20 was {parent.infos['recall_at_20']:.4f} and is {audit['recall_at_20']:.4f}",
    }
    return _write(folder, place, index, {**parent.infos, **audit, "decision": decision})


def rebuild_reason(parent: dict[str, Any], recall: float, num_vectors: int, config: IndexConfig) -> str:
    """Return why an updated index must be built anew; empty where it need not.

    Args:
        parent: the infos of the version before.
        recall: recall@20 of the updated index on the audit sample.
        num_vectors: its rows.
        config: the margins.
    """
    before = max(parent["recall_at_20"], parent["built_recall_at_20"])
    if recall < before - config.drift_margin:
        return f"recall@20 fell from {before:.4f} to {recall:.4f}, by more than drift_margin {config.drift_margin}"
    if recall < config.min_recall:
        return f"recall@20 of {recall:.4f} is under min_recall {config.min_recall}"
    factor = num_vectors / parent["built_num_vectors"]
    if not 1 / config.max_growth <= factor <= config.max_growth:
        return f"it was built for {parent['built_num_vectors']} rows and holds {num_vectors}"
    return ""


def publish_index(folder: Folder, place: str) -> None:
    """Give a version's index the names under which clip-retrieval's tools look for one."""
    for name in (INDEX_NAME, INFOS_NAME):
        folder.link(f"{place}/{name}", f"{PUBLISHED}/{name}")
    folder.link(f"{place}/{INDEX_NAME}", SERVED_NAME)


def drop_indexes(folder: Folder, kept: Collection[str]) -> None:
    """Delete the index files of versions but those in the kept folders. Open memory maps are not disturbed."""
    for name in folder.names(PUBLISHED):
        if name.isdigit() and f"{PUBLISHED}/{name}" not in kept:
            folder.delete(f"{PUBLISHED}/{name}")


def living_ids(parts: EmbeddingParts, tombstones: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ids of all rows that are not deleted, ascending."""
    alive = np.ones(count_rows(parts), np.bool_)
    alive[tombstones] = False
    return np.flatnonzero(alive)


def _write(folder: Folder, place: str, index: faiss.Index, infos: dict[str, Any]) -> dict[str, Any]:
    complete = {**infos, "num_vectors": int(index.ntotal), "dim": int(index.d)}
    with folder.writing(f"{place}/{INDEX_NAME}") as path:
        try:
            faiss.write_index(index, str(path))
        except RuntimeError as error:  # faiss gives the cause in words only
            raise StorageError(
                f"the index cannot be written: {error}",
                where=folder.describe(f"{place}/{INDEX_NAME}"),
                fix="free space and run the same command again: it resumes",
            ) from error
    folder.write_json(f"{place}/{INFOS_NAME}", complete)
    return complete


def _autofaiss(
    parts: EmbeddingParts, tombstones: NDArray[np.int64], config: IndexConfig
) -> tuple[faiss.Index | None, dict[str, Any] | None]:
    from autofaiss import build_index as autofaiss_build

    # autofaiss wants a unit, takes K, M and G for powers of 1024, and counts the index into the available memory.
    index_memory, build_memory = parse_bytes(config.max_index_memory), parse_bytes(config.build_memory)
    with (
        tempfile.TemporaryDirectory() as directory
    ):  # given an array, autofaiss leaves its own copy on the disk for long
        for number, (first, vectors) in enumerate(parts):
            alive = np.isin(np.arange(first, first + len(vectors)), tombstones, invert=True)
            if alive.any():
                Folder(directory).write_array(f"part{number:06d}.npy", np.asarray(vectors[alive], np.float32))
        return autofaiss_build(
            directory,
            save_on_disk=False,
            metric_type="ip",
            should_be_memory_mappable=True,
            nb_cores=1,
            index_param="nprobe=1",  # its own tuning goes by wall-clock: two builds of the same vectors would differ
            verbose=logging.ERROR,
            max_index_memory_usage=f"{index_memory}B",
            current_memory_available=f"{index_memory + build_memory}B",
        )


def _renumber(index: faiss.Index, ids: NDArray[np.int64]) -> None:
    """Replace each row's id, its position among the indexed rows, by `ids[position]`, in place."""
    lists: Any = faiss.extract_index_ivf(index).invlists
    for number in range(lists.nlist):
        if size := lists.list_size(number):
            stored = faiss.rev_swig_ptr(lists.get_ids(number), size)
            stored[:] = ids[stored]


def _tune(index: faiss.Index, parts: EmbeddingParts, tombstones: NDArray[np.int64], config: IndexConfig) -> str:
    """Probe the least power of two of lists that reaches `target_recall`; return that setting as faiss writes it.

    Measured on other rows than those of the audit, so that the audit stays honest.
    """
    lists, probed = faiss.extract_index_ivf(index).nlist, 1
    while True:
        parameters = f"nprobe={probed}"
        faiss.ParameterSpace().set_index_parameters(index, parameters)
        found = audit_recall(index, parts, tombstones, config.audit_queries, config.seed + 1)
        if found["recall_at_20"] >= config.target_recall or probed == lists:
            return parameters
        probed = min(2 * probed, lists)


def open_index(folder: Folder, place: str = PUBLISHED) -> faiss.Index:
    """Open an index memory-mapped, with the search parameters that its infos pin.

    Raises:
        StorageError: it is missing or damaged.
    """
    path = f"{place}/{INDEX_NAME}"
    try:
        index = faiss.read_index(str(folder.local(path)), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise read_error(error, folder.describe(path)) from error
    parameters = folder.read_json(f"{place}/{INFOS_NAME}")["index_param"]
    if parameters:
        faiss.ParameterSpace().set_index_parameters(index, parameters)
    return index


def approximate_candidates(
    index: faiss.Index, queries: NDArray[np.floating], k: int, excluded: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return candidate ids [B, k]; tombstones are passed over inside the search; -1 where there are fewer."""
    wide = np.ascontiguousarray(queries, np.float32)
    if len(excluded) == 0:
        return index.search(wide, k)[1]
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded))
    return index.search(wide, k, params=_parameters(index, selector))[1]


def _parameters(index: faiss.Index, selector: faiss.IDSelector) -> faiss.SearchParameters:
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(inner.index, selector))
    if isinstance(inner, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=inner.nprobe, max_codes=inner.max_codes)
    if isinstance(inner, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=inner.hnsw.efSearch)
    return faiss.SearchParameters(sel=selector)


def audit_recall(
    index: faiss.Index, parts: EmbeddingParts, tombstones: NDArray[np.int64], num_queries: int, seed: int
) -> dict[str, Any]:
    """Return recall@20 on random living rows with its 95% interval (normal, over queries).

    A row's own id counts like any other, as it does for every query.
    """
    living = living_ids(parts, tombstones)
    k = min(20, len(living))
    chosen = audit_sample(living, num_queries, seed)
    queries = quantize(gather(parts, chosen))
    truth, _ = exact_search(queries, blocks_of(parts), k, excluded=tombstones)
    found = approximate_candidates(index, queries, k, tombstones)
    recalls = np.array([len(np.intersect1d(t, f)) / k for t, f in zip(truth, found, strict=True)])
    half = 1.96 * recalls.std(ddof=1) / math.sqrt(len(recalls)) if len(recalls) > 1 else 0.0
    return {"recall_at_20": float(recalls.mean()), "recall_ci95": float(half), "audit_queries": len(chosen)}


def audit_sample(living: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the ids with the least hash of (seed, id): an update changes the sample by what it adds and deletes only.

    The hash is the finalizer of SplitMix64 (Steele et al. 2014).
    """
    mixed = living.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return living[np.argsort(mixed, kind="stable")[:count]]
