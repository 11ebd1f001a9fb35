"""What training reads when it starts after a removal, from the very neighbor table that had the
removed photograph."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from training_jobs import Prepared, generative

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.training.config import TrainConfig
from rdm.training.data.rows import TrainingRows


@pytest.fixture
def root(prepared: Prepared, tmp_path: Path) -> str:
    shutil.copytree(prepared.database, tmp_path / "db")
    return str(tmp_path / "db")


def database_of(rows: TrainingRows) -> RetrievalDatabase:
    """Return the database of rows' neighbors."""
    assert rows.neighbors is not None
    return rows.neighbors.database


def neighbors_of(data: TrainingRows) -> np.ndarray:
    return np.concatenate([data.neighbor_ids(stem).ravel() for stem in data.cache.stems])


def remove_a_neighbor(root: str, data: TrainingRows) -> np.ndarray:
    """Remove the photograph of the first neighbor; return the ids of its patches."""
    (record,) = database_of(data).records(neighbors_of(data)[:1])
    removal = Removal(frozenset([record.image_id]))
    run_build(update_builder(root, removal, only_delete=True), ComputeConfig(dask="inline"))
    return RetrievalDatabase.open(root).tombstones


@pytest.mark.parametrize("held_out", [False, True])
def test_training_that_starts_after_a_removal_is_conditioned_on_no_removed_patch(
    prepared: Prepared, tiny_recipe: TrainConfig, root: str, held_out: bool
) -> None:
    before = TrainingRows.open(prepared.cache, root, generative(tiny_recipe))
    gone = remove_a_neighbor(root, before)
    after = TrainingRows.open(prepared.cache, root, generative(tiny_recipe), held_out=held_out)
    assert database_of(after).version.number == database_of(before).version.number + 1
    assert not np.isin(neighbors_of(after), gone).any()
    removed = {vector.tobytes() for vector in database_of(before).embeddings(gone)}
    loaded = after.load_shard(0)["neighbors"]
    assert removed.isdisjoint(vector.tobytes() for vector in loaded.reshape(-1, loaded.shape[-1]))


def test_training_that_runs_goes_on_with_the_version_that_it_opened(
    prepared: Prepared, tiny_recipe: TrainConfig, root: str
) -> None:
    data = TrainingRows.open(prepared.cache, root, generative(tiny_recipe))
    before = data.load_shard(0)["neighbors"]
    gone = remove_a_neighbor(root, data)
    assert np.isin(neighbors_of(data), gone).any()
    np.testing.assert_array_equal(data.load_shard(0)["neighbors"], before)
