from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from distributed import LocalCluster

from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.pool import ComputePool
from rdm.errors import RdmError, StorageError
from rdm.progress import progress_to

INLINE = ComputeConfig(dask="inline")
LOCAL = ComputeConfig(num_workers=2, memory_fraction=0.2, retries=1)


class Counts:
    def __init__(self) -> None:
        self.done: list[int] = []

    def start(self, stage: str, total: int, unit: str, done: int) -> None:
        self.stage, self.total, self.done = stage, total, [done]

    def update(self, done: int, note: str) -> None:
        self.done.append(done)

    def finish(self) -> None:
        pass


def test_inline_yields_positions_and_results() -> None:
    with compute_pool(INLINE) as pool:
        assert dict(pool.map(lambda x: x * x, [3, 1, 2], stage="square")) == {0: 9, 1: 1, 2: 4}


def test_no_shards_give_no_results() -> None:
    with compute_pool(INLINE) as pool:
        assert list(pool.map(lambda x: x, [], stage="nothing")) == []


def test_local_pool_without_shards_starts_no_worker() -> None:
    counts = Counts()
    with progress_to(counts), compute_pool(ComputeConfig()) as pool:
        assert list(pool.map(abs, [], stage="nothing", done_before=2)) == []
        assert "client" not in vars(pool)
    assert (counts.total, counts.done) == (2, [2])


def test_progress_counts_shards_done_before() -> None:
    counts = Counts()
    with progress_to(counts), compute_pool(INLINE) as pool:
        list(pool.map(str, [1, 2], stage="embed", done_before=3))
    assert (counts.stage, counts.total, counts.done) == ("embed", 5, [3, 4, 5])


def test_every_shard_is_tried_before_the_first_error_is_raised() -> None:
    tried, finished = [], []

    def work(shard: int) -> int:
        tried.append(shard)
        if shard in (1, 2):
            raise ValueError(f"bad {shard}")
        return shard

    with compute_pool(INLINE) as pool, pytest.raises(RdmError) as caught:  # noqa: PT012
        for _, result in pool.map(work, [0, 1, 2, 3], stage="embed", names=["a", "b", "c", "d"]):
            finished.append(result)
    assert (tried, finished) == ([0, 1, 2, 3], [0, 3])
    assert caught.value.what == "embed: ValueError: bad 1 (and 1 more shards failed)"
    assert caught.value.where == "shard b"


def test_error_for_the_user_keeps_its_kind_place_and_remedy() -> None:
    def work(shard: int) -> int:
        raise StorageError("the disk is full", where="/data", fix="free space")

    with compute_pool(INLINE) as pool, pytest.raises(StorageError) as caught:
        list(pool.map(work, [0], stage="embed"))
    assert (caught.value.what, caught.value.where, caught.value.fix) == (
        "the disk is full",
        "/data",
        "free space",
    )


@pytest.mark.parametrize(
    "fields",
    [{"num_workers": 0}, {"memory_fraction": 0}, {"memory_fraction": 1.5}, {"retries": -1}],
)
def test_senseless_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        ComputeConfig.model_validate(fields)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cluster_maps_in_other_processes_and_carries_errors_home() -> None:
    def work(shard: int) -> tuple[int, int, str | None]:
        if shard < 0:
            raise StorageError("the disk is full", where=f"/data/{shard}", fix="free space")
        return shard * shard, os.getpid(), os.environ.get("OMP_NUM_THREADS")

    with compute_pool(LOCAL) as pool:
        results = dict(pool.map(work, list(range(6)), stage="square"))
        assert [results[number][0] for number in range(6)] == [0, 1, 4, 9, 16, 25]
        assert os.getpid() not in {pid for _, pid, _ in results.values()}
        assert {threads for _, _, threads in results.values()} == {"1"}

        finished = []
        with pytest.raises(StorageError) as caught:  # noqa: PT012
            for _, result in pool.map(work, [1, -1, 2, 3], stage="square"):
                finished.append(result[0])
        assert sorted(finished) == [1, 4, 9]
        assert (caught.value.what, caught.value.where, caught.value.fix) == (
            "the disk is full",
            "/data/-1",
            "free space",
        )

    with compute_pool(LOCAL) as outer:
        address = outer.client.scheduler.address  # type: ignore[union-attr]
        with compute_pool(ComputeConfig(dask=str(address))) as pool:
            assert dict(pool.map(work, [5], stage="square"))[0][0] == 25


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_worker_costs_a_retry_and_not_the_run(tmp_path: object) -> None:
    def work(path: str) -> bool:
        if os.path.exists(path):
            return True
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        return False

    with compute_pool(LOCAL) as pool:
        assert list(pool.map(work, [f"{tmp_path}/killed"], stage="fragile")) == [(0, True)]


def dying() -> Callable[[str], bool]:
    """Return work that is killed, and leaves word to kill the workers that follow, until all that
    is over."""

    def work(path: str) -> bool:
        if os.path.exists(path + ".over"):
            return True
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        return False

    return work


@contextmanager
def killing_at_birth(path: Path) -> Iterator[None]:
    """Kill every worker of this process as it starts, while a path exists."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            for child in psutil.Process().children(recursive=True) if path.exists() else []:
                with suppress(psutil.Error):
                    if any("spawn_main" in part for part in child.cmdline()):
                        child.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_worker_that_dies_while_it_starts_is_replaced(
    tmp_path: Path,
) -> None:
    config = ComputeConfig(num_workers=1, lost_worker_seconds=3)
    path = tmp_path / "killed"

    def relent() -> None:
        (tmp_path / "killed.over").touch()
        path.unlink()

    with killing_at_birth(path), compute_pool(config) as pool:
        timer = threading.Timer(10, relent)
        timer.start()
        assert list(pool.map(dying(), [str(path)], stage="fragile")) == [(0, True)]
        timer.join()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cluster_whose_workers_never_start_again_is_an_error(
    tmp_path: Path,
) -> None:
    config = ComputeConfig(num_workers=1, lost_worker_seconds=3, wait_for_workers_seconds=15)
    path = tmp_path / "killed"
    with (
        killing_at_birth(path),
        compute_pool(config) as pool,
        pytest.raises(RdmError, match="no worker has lived for 15 seconds"),
    ):
        list(pool.map(dying(), [str(path)], stage="fragile"))


@contextmanager
def pool_at_an_address(wait_for_workers_seconds: float) -> Iterator[tuple[Any, ComputePool]]:
    """A cluster of one worker, and a pool that knows its address only."""
    with (
        cast(
            Any, LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0")
        ) as cluster,
        compute_pool(
            ComputeConfig(
                dask=cluster.scheduler_address, wait_for_workers_seconds=wait_for_workers_seconds
            )
        ) as pool,
    ):
        assert isinstance(pool, ComputePool)
        yield cluster, pool


def dismiss_workers(cluster: Any, pool: ComputePool) -> None:
    cluster.scale(0)
    while pool.client.scheduler_info(n_workers=-1)["workers"]:
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cluster_at_an_address_whose_workers_are_gone_is_an_error() -> None:
    with pool_at_an_address(8) as (cluster, pool):
        dismiss_workers(cluster, pool)
        with pytest.raises(RdmError, match="no worker has lived for 8 seconds") as raised:
            list(pool.map(abs, [1], stage="lonely"))
        assert raised.value.where == cluster.scheduler_address


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers_return", [True, False])
def test_result_that_a_dying_worker_takes_along_is_computed_again_or_is_an_error(
    workers_return: bool,
) -> None:
    with pool_at_an_address(60 if workers_return else 8) as (cluster, pool):
        results = pool.map(abs, [-1, -2], stage="taken")
        first = next(results)
        while any(cast(Any, pool.client.processing()).values()):
            time.sleep(0.1)
        dismiss_workers(cluster, pool)
        if workers_return:
            timer = threading.Timer(3, cluster.scale, [1])
            timer.start()
            assert sorted([first, *results]) == [(0, 1), (1, 2)]
            timer.join()
        else:
            with pytest.raises(RdmError, match="no worker has lived for 8 seconds"):
                list(results)


def test_progress_counts_what_shards_hold() -> None:
    counts = Counts()
    with progress_to(counts), compute_pool(INLINE) as pool:
        list(pool.map(str, [1, 2], stage="draw", sizes=[8, 3], done_before=5))
    assert (counts.total, counts.done) == (16, [5, 13, 16])
