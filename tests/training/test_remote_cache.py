"""A cache on an object store: whole files, one request each, verified, and ahead of the steps that
need them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from http_store import Store, serving
from training_jobs import Prepared, generative

from rdm.compute import ComputeConfig, compute_pool
from rdm.errors import CacheError
from rdm.training.config import TrainConfig
from rdm.training.data.batches import BatchReader
from rdm.training.data.inlined_neighbors import inline_neighbors
from rdm.training.data.order import DataOrder
from rdm.training.data.rows import TrainingRows


@pytest.fixture
def store(prepared: Prepared, tmp_path: Path) -> Iterator[Store]:
    """A server of a cache with inlined neighbors, `store.url/inlined`, and of one without,
    `store.url/plain`."""
    for name in ("plain", "inlined"):
        shutil.copytree(prepared.cache, tmp_path / "served" / name)
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        inline_neighbors(str(tmp_path / "served" / "inlined"), prepared.database, pool)
    with serving(tmp_path / "served") as store:
        yield store


@pytest.fixture
def remote(store: Store, prepared: Prepared, tiny_recipe: TrainConfig) -> TrainingRows:
    """Training data whose latents and neighbors both come from the server."""
    data = TrainingRows.open(f"{store.url}/inlined", prepared.database, generative(tiny_recipe))
    assert len(data.shards) == 2
    return data


def test_opening_fetches_descriptions_and_no_shard(store: Store, remote: TrainingRows) -> None:
    requests = Counter(name for method, name in store.take_requests() if method == "GET")
    assert requests == {
        "cache.json": 1,
        "neighbors.json": 1,
        "00000.parquet": 1,
        "00001.parquet": 1,
    }


def test_a_shard_is_two_requests_with_inlined_neighbors(store: Store, remote: TrainingRows) -> None:
    store.take_requests()
    remote.load_shard(0)
    assert sorted(store.take_requests()) == [("GET", "00000.neighbors.npy"), ("GET", "00000.tar")]


def test_a_shard_is_two_requests_with_the_databases_own(
    store: Store, prepared: Prepared, tiny_recipe: TrainConfig
) -> None:
    data = TrainingRows.open(f"{store.url}/plain", prepared.database, generative(tiny_recipe))
    assert data.shards
    store.take_requests()
    data.load_shard(0)
    assert sorted(store.take_requests()) == [("GET", "00000.parquet"), ("GET", "00000.tar")]


def test_the_samples_are_those_of_the_local_cache(
    remote: TrainingRows, prepared: Prepared, tiny_recipe: TrainConfig
) -> None:
    local = TrainingRows.open(prepared.cache, prepared.database, generative(tiny_recipe))
    for index in range(2):
        found, expected = remote.load_shard(index), local.load_shard(index)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert remote.keys(index) == local.keys(index)


def test_an_epoch_asks_for_every_shard_once(store: Store, remote: TrainingRows) -> None:
    order = DataOrder([shard.num_samples for shard in remote.shards], 0)
    store.take_requests()
    with BatchReader(remote, order, memory_bytes=1) as reader:
        for start in range(order.num_samples):
            reader.batch(np.array([start]))
    requests = Counter(store.take_requests())
    assert set(requests) == {
        ("GET", f"{stem}.{kind}") for stem in ("00000", "00001") for kind in KINDS
    }
    assert requests.total() - len(requests) <= len(KINDS)  # of the next epoch, one shard ahead


KINDS = ("neighbors.npy", "tar")


@pytest.mark.parametrize("kind", KINDS)
def test_a_transfer_that_breaks_off_names_the_file(
    store: Store, remote: TrainingRows, kind: str
) -> None:
    store.cut.add(f"00001.{kind}")
    with pytest.raises(CacheError, match="cannot be read") as caught:
        remote.load_shard(1)
    assert caught.value.where == f"{store.url}/inlined/00001.{kind}"


def test_a_store_that_refuses_is_an_error_of_the_step_that_needs_the_shard(
    store: Store, remote: TrainingRows
) -> None:
    order = DataOrder([shard.num_samples for shard in remote.shards], 0)
    second = order.following(0, 1)[0]
    store.broken.add(f"{remote.shards[second].stem}.tar")
    with BatchReader(remote, order) as reader:
        first = remote.shards[1 - second].num_samples
        assert len(reader.batch(np.arange(first))["neighbors"]) == first
        with pytest.raises(CacheError, match="503") as caught:
            reader.batch(np.arange(first, first + 1))
    assert caught.value.where.endswith(f"{remote.shards[second].stem}.tar")


def test_a_store_that_is_gone_is_an_error(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    shutil.copytree(prepared.cache, tmp_path / "served" / "plain")
    with serving(tmp_path / "served") as store:
        data = TrainingRows.open(f"{store.url}/plain", prepared.database, generative(tiny_recipe))
        assert data.shards
    with pytest.raises(CacheError, match="refused"):
        data.load_shard(0)
