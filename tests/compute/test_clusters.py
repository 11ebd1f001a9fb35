from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

from rdm.compute import Clusters, ComputeConfig, compute_pool
from rdm.errors import StorageError, UsageError

INLINE = ComputeConfig(dask="inline")
LOCAL = ComputeConfig(num_workers=2, memory_fraction=0.2, retries=1)


def test_shared_pools_of_one_configuration_are_one() -> None:
    with Clusters() as clusters:
        with compute_pool(LOCAL, clusters) as first:
            pass
        with (
            compute_pool(LOCAL, clusters) as second,
            compute_pool(ComputeConfig(num_workers=1), clusters) as other,
        ):
            assert first is second is not other
        clusters.close()
        with compute_pool(LOCAL, clusters) as third:
            assert third is not first


def test_pools_that_share_no_clusters_are_two() -> None:
    with (
        Clusters() as clusters,
        compute_pool(LOCAL, clusters) as shared,
        compute_pool(LOCAL) as own,
    ):
        assert shared is not own
    with compute_pool(LOCAL) as one, compute_pool(LOCAL) as another:
        assert one is not another


def test_inline_work_needs_no_clusters() -> None:
    with Clusters() as clusters, compute_pool(INLINE, clusters) as pool:
        assert dict(pool.map(abs, [-3], stage="abs")) == {0: 3}


@pytest.mark.parametrize("address", ["nonsense", "ftp://x:1"])
def test_malformed_scheduler_address_is_a_usage_error(address: str) -> None:
    with (
        pytest.raises(UsageError, match="no Dask scheduler answers"),
        compute_pool(ComputeConfig(dask=address)),
    ):
        pass


@pytest.mark.slow
def test_silent_scheduler_address_is_a_usage_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(UsageError, match="no Dask scheduler answers") as caught,
            compute_pool(ComputeConfig(dask=address)),
        ):
            pass
    assert caught.value.where == address


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stages_that_share_a_cluster_find_in_its_workers_what_earlier_ones_loaded() -> None:
    one = LOCAL.model_copy(update={"num_workers": 1})

    def load(shard: int) -> tuple[int, bool]:
        loaded = "colorsys" in sys.modules
        import colorsys  # noqa: F401  # any module that nothing else imports

        return os.getpid(), loaded

    def stage(clusters: Clusters) -> tuple[int, bool]:
        with compute_pool(one, clusters) as pool:
            return dict(pool.map(load, [0], stage="load"))[0]

    with Clusters() as clusters:
        (first, loaded), (second, kept) = stage(clusters), stage(clusters)
        assert (first, loaded, kept) == (second, False, True)
        clusters.close()
        assert not psutil.pid_exists(first)
        third, loaded = stage(clusters)
        assert third != first
        assert not loaded
    assert not psutil.pid_exists(third)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_shared_cluster_goes_on_after_a_stage_that_failed() -> None:
    def work(shard: int) -> int:
        if shard < 0:
            raise StorageError("the disk is full", where="/data", fix="free space")
        return os.getpid()

    with Clusters() as clusters:
        with compute_pool(LOCAL, clusters) as pool, pytest.raises(StorageError):
            list(pool.map(work, [-1], stage="embed"))
        with compute_pool(LOCAL, clusters) as pool:
            assert len(dict(pool.map(work, [1, 2], stage="embed"))) == 2


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores"
)
def test_local_cluster_has_a_worker_for_each_core_that_the_process_may_use() -> None:
    count = (
        "from rdm.compute import ComputeConfig, count_workers; "
        "print(count_workers(ComputeConfig()))"
    )
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(own)})
    try:
        assert subprocess.check_output([sys.executable, "-c", count], text=True) == "1\n"
    finally:
        os.sched_setaffinity(0, own)
