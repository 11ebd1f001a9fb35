from __future__ import annotations

import numpy as np
import pytest

from rdm.database import RetrievalDatabase
from rdm.database.centers import cluster_centers
from rdm.errors import UsageError

NONE = np.zeros(0, np.int64)


def test_centers_are_patches_and_the_same_each_time(database: RetrievalDatabase) -> None:
    first, second = (cluster_centers(database, 5, NONE) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert set(first.tolist()) <= set(database.living_ids().tolist())


def test_centers_cover_a_database_better_than_its_first_patches(
    database: RetrievalDatabase,
) -> None:
    def covered(ids: np.ndarray) -> float:
        everything = database.embeddings(database.living_ids()).astype(float)
        return (everything @ database.embeddings(ids).astype(float).T).max(axis=1).mean()

    centers = cluster_centers(database, 6, NONE)
    assert covered(centers) > covered(database.living_ids()[: len(centers)])


def test_what_is_excluded_is_no_center(database: RetrievalDatabase) -> None:
    gone = cluster_centers(database, 4, NONE)
    assert not np.isin(cluster_centers(database, 4, gone), gone).any()


def test_more_centers_than_patches_are_refused(database: RetrievalDatabase) -> None:
    with pytest.raises(UsageError, match="999 cluster centers of"):
        cluster_centers(database, 999, NONE)
