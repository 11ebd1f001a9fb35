"""Dask clusters, local or at an address, and the pools on them: started late, shared by stages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

from rdm.compute.device import compute_device
from rdm.compute.machine import memory_bytes
from rdm.compute.pool import (
    ComputeConfig,
    ComputePool,
    InlinePool,
    Pool,
    num_workers,
)
from rdm.errors import UsageError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)
# Threads of the numerical libraries in a worker: the workers themselves fill the cores.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def count_workers(config: ComputeConfig) -> int:
    """Return the number of worker processes: a local cluster's, or those of the scheduler.

    Raises:
        UsageError: no scheduler answers at the address.
    """
    if config.dask == "inline":
        return 1
    if config.dask == "local":
        return num_workers(config)
    with compute_pool(config) as pool:
        assert isinstance(pool, ComputePool)
        return len(pool.client.scheduler_info(n_workers=-1)["workers"])


class Clusters:
    """Local clusters that the stages of a job share: workers keep their imports and models.

    They end with this context, or with `close`; a stage after that starts another.
    """

    def __init__(self) -> None:
        self._pools: dict[ComputeConfig, ComputePool] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pool(self, config: ComputeConfig) -> ComputePool:
        """Return the pool of a configuration: one and the same until the clusters are closed."""
        if config not in self._pools:
            self._pools[config] = _local_pool(config, self._stack)
        return self._pools[config]

    def close(self) -> None:
        """End the clusters, so that their memory and cores are free for a stage without workers."""
        self._pools.clear()
        self._stack.close()


@contextmanager
def compute_pool(config: ComputeConfig, clusters: Clusters | None = None) -> Iterator[Pool]:
    """Open the pool that a configuration names: `local`, `inline`, or a scheduler's address.

    A local cluster starts when the first shards are mapped.

    Args:
        config: where shards are computed.
        clusters: clusters that outlive the pool, if it is local; None: its cluster ends with it.

    Raises:
        UsageError: no scheduler answers at the address.
        DeviceError: a GPU is required, and this machine, where the workers would be, has none.
    """
    # Refused before a cluster starts.
    if config.device == "cuda" and config.dask in ("local", "inline"):
        compute_device(config.device)

    if config.dask == "inline":
        yield InlinePool(config)
    elif config.dask == "local" and clusters is not None:
        yield clusters.pool(config)
    elif config.dask == "local":
        with Clusters() as own:
            yield own.pool(config)
    else:
        with _remote_pool(config) as pool:
            yield pool


def _local_pool(config: ComputeConfig, stack: ExitStack) -> ComputePool:
    """Return a pool whose local cluster, once there is one, is closed by a stack."""

    def connect() -> Client:
        from distributed import Client

        return stack.enter_context(Client(stack.enter_context(_local_cluster(config))))

    return ComputePool(connect, config)


@contextmanager
def _remote_pool(config: ComputeConfig) -> Iterator[ComputePool]:
    """Open a pool on the workers of the scheduler at an address."""
    from distributed import Client

    try:
        _check_address(config.dask)
        client = Client(config.dask, timeout="10s")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers: {error}",
            where=config.dask,
            fix="start one with `dask scheduler`, or leave --dask out for a local cluster",
        ) from error

    with client:
        # The scheduler answers; its workers may still be starting.
        if not client.scheduler_info()["workers"]:
            logger.warning(
                "the Dask scheduler at %s has no workers yet; waiting for one", config.dask
            )
            try:
                client.wait_for_workers(1, timeout=config.wait_for_workers_seconds)
            except TimeoutError as error:
                raise UsageError(
                    "the Dask scheduler has no workers",
                    where=config.dask,
                    fix="start some with `dask worker ADDRESS`",
                ) from error
        yield ComputePool(lambda: client, config)


def _check_address(address: str) -> None:
    """Raise ValueError where an address has an unknown scheme or no port.

    A client that is given one is left half built, and may hang when it is collected.
    """
    from distributed.comm.addressing import parse_address, parse_host_port
    from distributed.comm.registry import get_backend

    scheme, location = parse_address(address)
    get_backend(scheme)
    if scheme != "inproc":
        parse_host_port(location)


@contextmanager
def _local_cluster(config: ComputeConfig) -> Iterator[Any]:
    """Start a cluster on this machine whose workers have one thread, and share its memory."""
    import dask.config
    from distributed import LocalCluster

    count = num_workers(config)
    memory_limit = int(memory_bytes() * config.memory_fraction / count)
    settings = {
        "distributed.nanny.environ": _ONE_THREAD,
        "distributed.nanny.pre-spawn-environ": _ONE_THREAD,
        "distributed.worker.daemon": True,
        # A worker that waits for memory that it fills itself waits forever.
        "distributed.worker.memory.pause": False,
        "distributed.scheduler.allowed-failures": config.retries,
        # Dask would close such a worker and not replace it: see ComputePool.
        "distributed.deploy.lost-worker-timeout": "1000 days",
    }

    # The dashboard's usual port 8787 is not free everywhere, and Dask warns when it is taken.
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory_limit,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as cluster,
    ):
        yield cluster
