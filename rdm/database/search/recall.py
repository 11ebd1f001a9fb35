"""The audit of an index: recall@20 against exact search, on a sample that updates hardly change."""

from __future__ import annotations

import math

import faiss
import numpy as np
from numpy.typing import NDArray

from rdm.config import Record
from rdm.database.embedding_parts import EmbeddingParts, count_rows, gather
from rdm.database.search.approximate import approximate_candidates
from rdm.database.search.exact import blocks_of, exact_search, quantize


class Recall(Record):
    """Recall@20 on the audited rows, with the half-width of its 95% interval (normal)."""

    recall_at_20: float
    recall_ci95: float
    audit_queries: int


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
    # Random living rows are the queries, as stored.
    living = np.delete(np.arange(count_rows(parts), dtype=np.int64), tombstones)
    k = min(20, len(living))
    chosen = audit_sample(living, num_queries, seed)
    queries = quantize(gather(parts, chosen))

    # Exact search is the truth; `found` has -1 where the index found fewer.
    truth, _ = exact_search(queries, blocks_of(parts), k, excluded=tombstones)
    found = approximate_candidates(index, queries, k)
    recalls = np.array([len(np.intersect1d(t, f)) / k for t, f in zip(truth, found, strict=True)])

    # Half-width of the normal 95% interval of the mean.
    half = 1.96 * recalls.std(ddof=1) / math.sqrt(len(recalls)) if len(recalls) > 1 else 0.0

    return Recall(
        recall_at_20=float(recalls.mean()), recall_ci95=float(half), audit_queries=len(chosen)
    )


def audit_sample(living: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the `count` living ids with the least hash of (seed, id).

    An update changes the sample only by the patches that it adds and deletes.

    The hash is the finalizer of SplitMix64 (Steele et al. 2014).
    """
    mixed = living.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return living[np.argsort(mixed, kind="stable")[:count]]
