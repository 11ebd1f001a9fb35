"""Approximate search over 1,000,000 clustered vectors of 512 numbers: ours against the kind of
index autofaiss chooses.

Both are probed as deep as recall@20 >= 0.95 on 500 of the rows needs. Both are trained on the same
random sample: autofaiss itself would train on all rows, for hours, and cannot make the kind that it
chooses from 1,000,000 rows on (OPQ) with faiss 1.15, whose OPQMatrix takes no argument `M`. The
rotation of OPQ has 5 iterations here: faiss's 50 did not end within 15 minutes of two cores.

`python -m benchmarks.approximate_neighbors ROWS` takes another size.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from autofaiss.external.optimize import get_optimal_index_keys_v2

from benchmarks.clusters import DIM, write_clusters
from benchmarks.timing import paired_ratio
from rdm.database.search.exact import blocks_of, exact_search
from rdm.database.search.index_settings import IndexConfig, choose_key, train_rows
from rdm.database.search.recall import audit_sample
from rdm.database.search.sharded_index import ADD_ROWS, IndexedRows
from rdm.storage import Folder

RECALL, K, QUERIES = 0.95, 20, 500
ROTATION_ITERATIONS = 5
MEMORY = "8GB"


def run(rows: int = 1_000_000) -> str:
    """Return the ratio in words."""
    none = np.zeros(0, np.int64)
    with tempfile.TemporaryDirectory() as directory:
        vectors = write_clusters(Path(directory) / "0.npy", rows)
        wanted = np.array(vectors[:: -(-rows // QUERIES)])
        truth = exact_search(wanted, blocks_of([(0, vectors)]), K, excluded=none)[0]
        indexed = IndexedRows(Folder(directory), ("0.npy",), none)
        our_key = choose_key(rows, DIM, IndexConfig(max_index_memory=MEMORY))
        their_key = get_optimal_index_keys_v2(rows, DIM, MEMORY, should_be_memory_mappable=True)[0]
        keys = dict.fromkeys((our_key, their_key))
        built = {key: _built(indexed, key, wanted, truth) for key in keys}
    queries = wanted.astype(np.float32)
    (ours, our_words), (theirs, their_words) = built[our_key], built[their_key]
    ratio, _, _ = paired_ratio(lambda: ours.search(queries, K), lambda: theirs.search(queries, K))
    return (
        f"{ratio:.2f}x the queries/s of autofaiss's choice at {rows:,} rows: {our_words}, "
        f"against {their_words}"
    )


def _built(
    rows: IndexedRows, key: str, wanted: np.ndarray, truth: np.ndarray
) -> tuple[faiss.Index, str]:
    started = time.perf_counter()
    index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexPreTransform):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(rotation, faiss.OPQMatrix):
            rotation.niter = ROTATION_ITERATIONS
    sample = audit_sample(rows.living, train_rows(key, DIM, IndexConfig(build_memory="1GB")), 0)
    vectors = rows.parts[0][1]
    index.train(np.asarray(vectors[np.sort(sample)], np.float32))
    for start in range(0, len(vectors), ADD_ROWS):
        index.add(np.asarray(vectors[start : start + ADD_ROWS], np.float32))
    seconds, recall, probed = time.perf_counter() - started, 0.0, 1
    while True:
        graph = f",quantizer_efSearch={max(16, 2 * probed)}" if "HNSW" in key else ""
        faiss.ParameterSpace().set_index_parameters(index, f"nprobe={probed}{graph}")
        found = index.search(wanted.astype(np.float32), K)[1]
        recall = float(
            np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)])
        )
        if recall >= RECALL or probed >= 512:
            break
        probed *= 2
    num_bytes = len(faiss.serialize_index(index))
    return (
        index,
        f"{key} (nprobe {probed}, recall@20 {recall:.3f}, {num_bytes / 1e9:.2f} GB, built in "
        f"{seconds:.0f} s)",
    )


if __name__ == "__main__":
    print(run(int(sys.argv[1])))
