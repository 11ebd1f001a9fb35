"""Threads that each do whole pieces of work, instead of sharing every small operation."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

ResultT = TypeVar("ResultT")
_starting = threading.Lock()


@contextmanager
def single_threads() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of as many threads as PyTorch uses, in each of which PyTorch uses one.

    PyTorch divides every operation among its threads, and all of them wait for the last. Where
    operations take microseconds and another process has one of the cores, they do little but wait.
    """
    import torch

    with _starting:
        count = torch.get_num_threads()
        started = threading.Barrier(count + 1)

        def start() -> None:
            # a thread takes the number of all at its first question, and would take it later
            torch.get_num_threads()
            # of this thread, and of those that begin later: hence the second call below
            torch.set_num_threads(1)
            started.wait()

        pool = ThreadPoolExecutor(count, initializer=start)
        for _ in range(count):
            pool.submit(int)
        started.wait()
        torch.set_num_threads(count)
    with pool:
        yield pool


def ahead(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], ResultT]], count: int
) -> Iterator[ResultT]:
    """Yield the results of tasks in their order, while the pool works on the next `count`."""
    waiting: deque[Future[ResultT]] = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
