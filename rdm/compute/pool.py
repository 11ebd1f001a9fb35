"""Pools that map functions over shards: on the workers of a Dask client, or in this process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pydantic import Field

from rdm.compute.device import DeviceName, describe_device, worker_device
from rdm.compute.machine import num_cores
from rdm.config import Config
from rdm.errors import RdmError
from rdm.progress import tracking

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)
WATCH_SECONDS = 5.0  # between looks at whether workers live, while no shard is finished
ShardT = TypeVar("ShardT")
ResultT = TypeVar("ResultT")


class ComputeConfig(Config):
    """Settings of the computation of shards: the cluster, its workers, the device."""

    dask: str = Field(
        default="local",
        description="`local` starts a cluster here; else a scheduler's address, tcp://HOST:PORT",
    )
    num_workers: int | None = Field(
        default=None, ge=1, description="worker processes of a local cluster; None: one per core"
    )
    memory_fraction: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="share of this machine's, or container's, memory the local workers may use",
    )
    device: DeviceName = Field(
        default="auto",
        description="what networks compute on: cpu, cuda, or auto, a GPU where a worker finds one",
    )
    retries: int = Field(
        default=2,
        ge=0,
        description="further attempts for a shard whose worker died; an error is not retried",
    )
    lost_worker_seconds: float = Field(
        default=60,
        gt=0,
        description="time for a dead local worker to start again, before another is started for it",
    )
    wait_for_workers_seconds: float = Field(
        default=300, gt=0, description="longest time without any worker; then the work fails"
    )


@dataclass(frozen=True)
class ShardFailure(Exception):
    """A shard that failed, with the error that its function raised."""

    shard: str
    error: BaseException

    def __str__(self) -> str:
        return f"shard {self.shard}: {self.error}"


@dataclass(frozen=True)
class _Failed:
    """The error that a shard's function raised."""

    error: BaseException


class ComputePool:
    """Maps functions over shards on one Dask client, which connects with the first shards."""

    def __init__(self, connect: Callable[[], Client], config: ComputeConfig) -> None:
        self._connect = connect
        self.config = config
        self._lived = self._complete = 0.0  # when there was a worker, and when there were all

    @cached_property
    def client(self) -> Client:
        """The Dask client; asking for it starts a local cluster."""
        return self._connect()

    def describe_device(self) -> str:
        """Return in words what networks compute on: here, or on one of a scheduler's workers."""
        if self.config.dask == "local":
            return _device_of_worker(self.config.device)
        return cast(
            str, self.client.submit(_device_of_worker, self.config.device, pure=False).result()
        )

    def map(
        self,
        function: Callable[[ShardT], ResultT],
        shards: Sequence[ShardT],
        *,
        stage: str,
        unit: str = "shards",
        names: Sequence[str] | None = None,
        sizes: Sequence[int] | None = None,
        done_before: int = 0,
    ) -> Iterator[tuple[int, ResultT]]:
        """Yield `(position, result)` of each shard as it finishes.

        Every shard is tried before the first error is raised, so that one bad shard costs one shard
        and a rerun does only that one again. Progress counts shards, or their `sizes` in `unit`.

        Raises:
            RdmError: the first failing shard's error, with the shard named; or no worker lives.
        """
        # Without shards no workers are started.
        names = names or [str(position) for position in range(len(shards))]
        if not shards:
            with tracking(stage, done_before, unit, done_before):
                return

        # A key of its own for each call: Dask would return an earlier result of an equal one.
        futures: dict[Future, int] = {
            self.client.submit(
                function, shard, key=f"{stage}-{names[position]}-{os.urandom(4).hex()}", pure=False
            ): position
            for position, shard in enumerate(shards)
        }

        failures: list[ShardFailure] = []
        try:
            total = (len(shards) if sizes is None else sum(sizes)) + done_before
            with tracking(stage, total, unit, done_before) as tracker:
                # Results are yielded as they come, and released, so that they do not pile up.
                for future in self._as_completed(list(futures)):
                    position = futures[future]
                    outcome = self._outcome(future)
                    if isinstance(outcome, _Failed):
                        failures.append(ShardFailure(names[position], outcome.error))
                    else:
                        yield position, outcome
                    tracker.advance(
                        1 if sizes is None else sizes[position],
                        note=f"{len(failures)} failed" if failures else "",
                    )
                    future.release()
        finally:
            # Whoever stops listening has no use for shards that are not done.
            self.client.cancel([future for future in futures if not future.done()])

        if failures:
            _raise_failures(stage, failures)

    def unseen(self, paths: Sequence[str]) -> list[tuple[str, str]]:
        """Return `(worker's name, path)` of the files and folders that a worker does not see.

        The workers of a cluster that was started here see this machine's disks, and are not tried.

        Raises:
            RdmError: a worker cannot run this library.
        """
        if self.config.dask == "local":
            return []

        # A worker that cannot even run the question has another environment.
        found: Any = self.client.run(_missing, list(paths), on_error="return")
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        names = {address: str(workers.get(address, {}).get("name", address)) for address in found}

        for address, missing in found.items():
            if isinstance(missing, BaseException):
                raise RdmError(
                    f"the Dask worker {names[address]} cannot run rdm: "
                    f"{type(missing).__name__}: {missing}",
                    where=address,
                    fix="start the workers in an environment with the same packages as here",
                )

        return [(names[address], path) for address, missing in found.items() for path in missing]

    def _as_completed(self, futures: list[Future]) -> Iterator[Future]:
        """Yield futures as they finish, and look after the workers while none does."""
        finished: Queue[Future] = Queue()
        for future in futures:
            future.add_done_callback(finished.put)
        for _ in futures:
            self._start_watching()
            while True:
                try:
                    yield finished.get(timeout=WATCH_SECONDS)
                    break
                except Empty:
                    self._look_after_workers()

    def _outcome(self, future: Future) -> Any:
        """Return the result of a shard's function, or _Failed with its error.

        A worker that dies after it has finished a shard takes the result along. Dask computes it
        again on another worker, and there may be none: so the wait for a result is watched like the
        wait for a shard.
        """
        self._start_watching()
        while True:
            try:
                return future.result(timeout=WATCH_SECONDS)
            except TimeoutError as error:
                if future.status == "error":  # the function's own
                    return _Failed(error)
                self._look_after_workers()
            except Exception as error:
                return _Failed(error)

    def _start_watching(self) -> None:
        self._lived = self._complete = time.monotonic()

    def _look_after_workers(self) -> None:
        """Replace workers of a local cluster that do not start again.

        Dask itself gives up after their first failure to.
        """
        # Remember when there was any worker, and when there were all.
        wanted = num_workers(self.config) if self.config.dask == "local" else 1
        alive = len(self.client.scheduler_info(n_workers=-1)["workers"])
        now = time.monotonic()

        if alive:
            self._lived = now
        if alive >= wanted:
            self._complete = now
        elif now - self._complete > self.config.lost_worker_seconds:
            # Workers that have not come back in time are replaced.
            logger.warning("%d of %d workers are left", alive, wanted)
            self._complete = now
            if self.config.dask == "local":
                cluster: Any = self.client.cluster
                cluster.scale(alive)  # drops those that have not started, and no other
                cluster.scale(wanted)

        # Without any worker there is nothing to wait for.
        longest = self.config.wait_for_workers_seconds
        if now - self._lived > longest:
            local = self.config.dask == "local"
            raise RdmError(
                f"no worker has lived for {longest:g} seconds",
                where="the local Dask cluster" if local else self.config.dask,
                fix="most likely a worker needs more memory than it has: run the same command with "
                f"{'fewer workers' if local else 'larger workers'}; finished shards are kept",
            )


class InlinePool(Generic[ShardT]):
    """Computes shards in this process, one after another: for small work and for tests."""

    def __init__(self, config: ComputeConfig) -> None:
        self.config = config

    def describe_device(self) -> str:
        """See ComputePool."""
        return _device_of_worker(self.config.device)

    def map(
        self,
        function: Callable[[Any], Any],
        shards: Sequence[Any],
        *,
        stage: str,
        unit: str = "shards",
        names: Sequence[str] | None = None,
        sizes: Sequence[int] | None = None,
        done_before: int = 0,
    ) -> Iterator[tuple[int, Any]]:
        """See ComputePool.map."""
        names = names or [str(position) for position in range(len(shards))]
        failures: list[ShardFailure] = []
        total = (len(shards) if sizes is None else sum(sizes)) + done_before
        with tracking(stage, total, unit, done_before) as tracker:
            for position, shard in enumerate(shards):
                # As on workers, one bad shard does not keep the others from being tried.
                try:
                    result = function(shard)
                except Exception as error:
                    failures.append(ShardFailure(names[position], error))
                else:
                    yield position, result
                tracker.advance(1 if sizes is None else sizes[position])
        if failures:
            _raise_failures(stage, failures)

    def unseen(self, paths: Sequence[str]) -> list[tuple[str, str]]:
        """See ComputePool.unseen: this process sees every path."""
        return []


Pool = ComputePool | InlinePool


def _missing(paths: Sequence[str]) -> list[str]:
    """Return the paths that do not exist where this runs."""
    return [path for path in paths if not os.path.exists(path)]


def _device_of_worker(requested: DeviceName) -> str:
    return describe_device(worker_device(requested))


def num_workers(config: ComputeConfig) -> int:
    """Return the worker processes of a local cluster."""
    return config.num_workers or num_cores()


def _raise_failures(stage: str, failures: list[ShardFailure]) -> None:
    """Raise the first shard's error, in words that name the shard and count the others."""
    first = failures[0]
    others = f" (and {len(failures) - 1} more shards failed)" if len(failures) > 1 else ""

    if isinstance(first.error, RdmError):
        first.error.what = f"{first.error.what}{others}"
        raise first.error

    # Known by its name, without an import of dask for inline work.
    if type(first.error).__name__ == "KilledWorker":
        raise RdmError(
            f"{stage}: every worker that took the shard died{others}",
            where=f"shard {first.shard}",
            fix="most likely it needs more memory: run the same command with fewer or larger "
            "workers; finished shards are kept",
        ) from first.error

    raise RdmError(
        f"{stage}: {type(first.error).__name__}: {first.error}{others}",
        where=f"shard {first.shard}",
        fix="finished shards are kept: mend the cause and run the same command again",
    ) from first.error
