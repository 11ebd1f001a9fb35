"""The approximate index: built by autofaiss, audited against exact search, searched without tombstones."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

import logging
import math
import tempfile
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.config import Config, parse_bytes
from rdm.database.search import blocks_of, exact_search, quantize
from rdm.errors import DatabaseError, StorageError
from rdm.storage import Folder
from rdm.storage.files import read_error

INDEX_PATH = "index/knn.index"
INFOS_PATH = "index/index_infos.json"
AUDIT_BLOCK_ROWS = 65_536


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


def build_index(
    folder: Folder, vectors: NDArray[np.float16], tombstones: NDArray[np.int64], config: IndexConfig
) -> dict[str, Any]:
    """Build `index/knn.index` over all rows (position = patch_id); write and return `index/index_infos.json`.

    Raises:
        DatabaseError: autofaiss built nothing (too little memory), or recall@20 is under `min_recall`.
    """
    index, infos = _autofaiss(vectors, config)
    if index is None or infos is None:  # autofaiss says so without an exception
        raise DatabaseError(
            "autofaiss built no index: too little memory",
            where=folder.describe(INDEX_PATH),
            fix="raise index.build_memory or index.max_index_memory",
        )
    parameters = _tune(index, vectors, tombstones, config)
    audit = audit_recall(index, vectors, tombstones, config.audit_queries, config.seed)
    summary = {
        "index_key": str(infos["index_key"]),
        "index_param": parameters,
        "num_vectors": int(index.ntotal),
        "dim": int(index.d),
        **audit,
    }
    if audit["recall_at_20"] < config.min_recall:
        raise DatabaseError(
            f"the index finds {audit['recall_at_20']:.3f} of the 20 nearest, under min_recall {config.min_recall}",
            where=folder.describe(INDEX_PATH),
            fix="raise index.max_index_memory, or lower index.min_recall",
        )
    with folder.writing(INDEX_PATH) as path:
        try:
            faiss.write_index(index, str(path))
        except RuntimeError as error:  # faiss gives the cause in words only
            raise StorageError(
                f"the index cannot be written: {error}",
                where=folder.describe(INDEX_PATH),
                fix="free space and run the same command again: it resumes",
            ) from error
    folder.write_json(INFOS_PATH, summary)
    return summary


def _autofaiss(vectors: NDArray[np.float16], config: IndexConfig) -> tuple[faiss.Index | None, dict[str, Any] | None]:
    from autofaiss import build_index as autofaiss_build

    # autofaiss wants a unit, takes K, M and G for powers of 1024, and counts the index into the available memory.
    index_memory, build_memory = parse_bytes(config.max_index_memory), parse_bytes(config.build_memory)
    with (
        tempfile.TemporaryDirectory() as directory
    ):  # given an array, autofaiss leaves its own copy on the disk for long
        Folder(directory).write_array("embeddings.npy", np.asarray(vectors, np.float32))
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


def _tune(index: faiss.Index, vectors: NDArray[np.float16], tombstones: NDArray[np.int64], config: IndexConfig) -> str:
    """Probe the least power of two of lists that reaches `target_recall`; return that setting as faiss writes it.

    Measured on other rows than those of the audit, so that the audit stays honest.
    """
    lists, probed = faiss.extract_index_ivf(index).nlist, 1
    while True:
        parameters = f"nprobe={probed}"
        faiss.ParameterSpace().set_index_parameters(index, parameters)
        found = audit_recall(index, vectors, tombstones, config.audit_queries, config.seed + 1)
        if found["recall_at_20"] >= config.target_recall or probed == lists:
            return parameters
        probed = min(2 * probed, lists)


def open_index(folder: Folder) -> faiss.Index:
    """Open the index memory-mapped, with the search parameters that its infos pin.

    Raises:
        StorageError: it is missing or damaged.
    """
    try:
        index = faiss.read_index(str(folder.local(INDEX_PATH)), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise read_error(error, folder.describe(INDEX_PATH)) from error
    parameters = folder.read_json(INFOS_PATH)["index_param"]
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
    index: faiss.Index, vectors: NDArray[np.float16], tombstones: NDArray[np.int64], num_queries: int, seed: int
) -> dict[str, Any]:
    """Return recall@20 on random living rows with its 95% interval (normal, over queries).

    A row's own id counts like any other, as it does for every query.
    """
    living = np.setdiff1d(np.arange(len(vectors)), tombstones)
    k = min(20, len(living))
    chosen = np.random.default_rng(seed).permutation(living)[:num_queries]
    queries = quantize(vectors[chosen])
    truth, _ = exact_search(queries, blocks_of([(0, vectors)], AUDIT_BLOCK_ROWS), k, excluded=tombstones)
    found = approximate_candidates(index, queries, k, tombstones)
    recalls = np.array([len(np.intersect1d(t, f)) / k for t, f in zip(truth, found, strict=True)])
    half = 1.96 * recalls.std(ddof=1) / math.sqrt(len(recalls)) if len(recalls) > 1 else 0.0
    return {"recall_at_20": float(recalls.mean()), "recall_ci95": float(half), "audit_queries": len(chosen)}
