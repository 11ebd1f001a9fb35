from __future__ import annotations

import faiss
import numpy as np
import pytest

from rdm.database.search.exact import exact_search
from rdm.database.search.recall import Recall, audit_recall, audit_sample

NONE = np.zeros(0, np.int64)


def test_recall_of_a_complete_index_is_one(vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors.astype(np.float32))
    assert audit_recall(index, [(0, vectors)], NONE, 500, 0) == Recall(
        recall_at_20=1, recall_ci95=0, audit_queries=500
    )


def test_recall_of_an_index_over_half_the_rows_is_the_share_of_neighbors_there(
    vectors: np.ndarray,
) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors[:300].astype(np.float32))
    truth, _ = exact_search(vectors, [(0, vectors)], 20, excluded=NONE)
    audit = audit_recall(index, [(0, vectors)], NONE, 600, 0)
    assert audit.recall_at_20 == pytest.approx((truth < 300).mean())
    assert audit.recall_ci95 > 0


def test_audit_with_few_living_rows_lowers_k(vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors[:3].astype(np.float32))
    assert audit_recall(index, [(0, vectors)], np.arange(3, 600), 500, 0).recall_at_20 == 1.0


def test_audit_sample_changes_by_what_an_update_changes_alone() -> None:
    before = audit_sample(np.arange(1000), 100, seed=0)
    dead = before[:5]
    after = audit_sample(np.setdiff1d(np.arange(1010), dead), 100, seed=0)
    assert len(np.intersect1d(before, after)) >= 90
    assert not np.isin(after, dead).any()


def test_audit_sample_is_another_with_another_seed() -> None:
    first, second = (audit_sample(np.arange(1000), 100, seed=seed) for seed in (0, 1))
    assert len(np.intersect1d(first, second)) < 30
