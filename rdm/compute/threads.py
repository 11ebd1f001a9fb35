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

    # One at a time: the number of threads is a setting of the process.
    with _starting:
        count = torch.get_num_threads()
        started = threading.Barrier(count + 1)

        def start() -> None:
            # A thread takes the process's number at its first question, and would take it later.
            torch.get_num_threads()
            # This sets the number of this thread, and of threads that begin later: hence the second
            # call below.
            torch.set_num_threads(1)
            started.wait()

        pool = ThreadPoolExecutor(count, initializer=start)
        for _ in range(count):
            pool.submit(int)
        started.wait()
        # Back to the former number, for threads that begin later.
        torch.set_num_threads(count)
    with pool:
        yield pool


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch share each operation among so many threads; None: among as many as before."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ahead(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], ResultT]], count: int
) -> Iterator[ResultT]:
    """Yield the results of tasks in their order, while the pool works on the next `count`."""
    # The queue holds `count` tasks beyond the one whose result is waited for.
    waiting: deque[Future[ResultT]] = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
