"""Kill writers and Dask workers at random moments of a build, an update and a compaction, then
finish them.

Arguments: a folder as `killed_work.works` wants it; the encoder's name; how many kills; a seed.
    Prints one line per
job: its name, the kills of its writer, and those of a worker while it ran.

Writers are forks of this process, which has loaded everything and started no threads. The workers
belong to one cluster, a process of its own: `kill_at_random.py --cluster BASE`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distributed  # loaded before the forks

from rdm.compute import ComputeConfig

if TYPE_CHECKING:
    from killed_work import Work

NUM_WORKERS = 2
SETTLE_SECONDS = 30  # a worker of a killed writer may still be at its shard


class Cluster:
    """The cluster's process: it answers each line with one of JSON."""

    def __init__(self, base: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--cluster", base],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.compute = ComputeConfig(dask=str(self._read()))

    def ask(self, question: str) -> Any:
        """Return the answer to `pids` or `idle`."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the cluster and its workers."""
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class Clusters:
    """The cluster in use. One that lost its workers for good (a loaded machine starts none in time)
    is replaced."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._cluster = Cluster(base)

    def settled(self) -> Cluster:
        """Return a cluster with all its workers, none of them at work."""
        if not wait_until(lambda: self._cluster.ask("idle")):
            self.close()
            self._cluster = Cluster(self._base)
        return self._cluster

    def close(self) -> None:
        """End the cluster."""
        self._cluster.close()


@contextmanager
def clusters_of(base: Path) -> Iterator[Clusters]:
    clusters = Clusters(base)
    try:
        yield clusters
    finally:
        clusters.close()


def run_cluster(base: Path) -> None:
    """Serve questions on standard input until it is closed."""
    import dask.config
    from distributed.utils import get_mp_context

    settings = {
        # Workers fork from a server that has loaded what they need: the next one is there in a
        # moment.
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.worker.preload": [
            f"import killed_work; killed_work.register_encoder({str(base)!r})"
        ],
        "distributed.scheduler.allowed-failures": 10,
    }
    dask.config.set(settings)
    context = get_mp_context()
    context.set_forkserver_preload(["distributed", "killed_work"])
    first = context.Process(target=time.monotonic)
    first.start()
    first.join()  # now the server has loaded it all, however long that took
    cluster: Any
    with distributed.LocalCluster(
        n_workers=NUM_WORKERS, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as cluster:
        say(json.dumps(cluster.scheduler_address))
        for line in sys.stdin:
            busy = [bool(worker.processing) for worker in cluster.scheduler.workers.values()]
            pids = [nanny.pid for nanny in cluster.workers.values()]
            say(
                json.dumps(
                    pids if line.strip() == "pids" else len(busy) == NUM_WORKERS and not any(busy)
                )
            )


def start(work: Work, root: Path, compute: ComputeConfig) -> int:
    """Run a job in a fork; return its process number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work.run(root, compute)
            code = 0
        except BaseException as error:  # the parent must not go on twice
            sys.stderr.write(f"{error}\n")
        os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def seconds_of(work: Work, root: Path, compute: ComputeConfig) -> float:
    work.prepare(root)
    started = time.monotonic()
    assert exit_code(start(work, root, compute)) == 0, f"{work.name} fails undisturbed"
    seconds = time.monotonic() - started
    work.check_finished(root, 0)
    return seconds


def kill_once(
    work: Work, root: Path, cluster: Cluster, moment: float, *, worker: bool, step: int
) -> bool:
    """Start a job, kill its writer or a worker after some seconds, finish it; return whether it was
    still at it."""
    work.prepare(root)
    child = start(work, root, cluster.compute)
    time.sleep(moment)
    running = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    if worker:
        os.kill(cluster.ask("pids")[step % NUM_WORKERS], signal.SIGKILL)
        assert exit_code(child) == 0, (
            f"step {step}: {work.name} did not survive the loss of a worker"
        )
    else:
        os.kill(child, signal.SIGKILL)
        exit_code(child)
        work.check_survivor(root, step)
        assert exit_code(start(work, root, cluster.compute)) == 0, (
            f"step {step}: {work.name} cannot be finished"
        )
    # what a worker of the dead writer was still writing
    wait_until(lambda: not list(root.rglob(".*.tmp")))
    work.check_finished(root, step)
    return running


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


def main(base: Path, encoder: str, count: int, seed: int) -> None:
    from killed_work import works

    rng = random.Random(seed)
    with clusters_of(base) as clusters:
        for work in works(base, encoder):
            on_dask = work.name != "compact"  # which needs no workers
            seconds = min(
                seconds_of(work, base / "db", clusters.settled().compute) for _ in range(3)
            )
            kills: Counter[bool] = Counter()
            step = 0
            while kills.total() < count // 3:
                step += 1
                worker = on_dask and step % 3 == 0
                moment = rng.uniform(0, seconds)
                if kill_once(
                    work, base / "db", clusters.settled(), moment, worker=worker, step=step
                ):
                    kills[worker] += 1
            say(f"{work.name} {kills[False]} {kills[True]}")


if __name__ == "__main__":
    if sys.argv[1] == "--cluster":
        run_cluster(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
