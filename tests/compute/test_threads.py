from __future__ import annotations

import threading

import pytest
import torch

from rdm.compute.threads import ahead, single_threads


def test_pytorch_uses_one_thread_inside_and_as_many_as_before_outside() -> None:
    before = torch.get_num_threads()
    with single_threads() as pool:
        inside = [
            future.result() for future in [pool.submit(torch.get_num_threads) for _ in range(8)]
        ]
        assert torch.get_num_threads() == before
    assert (set(inside), torch.get_num_threads()) == ({1}, before)


def test_threads_that_begin_later_are_not_bound() -> None:
    with single_threads():
        found: list[int] = []
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
    assert found == [torch.get_num_threads()]


def test_results_keep_the_order_of_their_tasks() -> None:
    with single_threads() as pool:
        assert list(ahead(pool, [lambda n=n: n * n for n in range(20)], 3)) == [
            n * n for n in range(20)
        ]


def test_no_more_than_asked_for_is_begun_ahead() -> None:
    begun: list[int] = []
    with single_threads() as pool:
        results = ahead(pool, (lambda n=n: begun.append(n) for n in range(20)), 2)
        next(results)
        assert len(begun) <= 3
        results.close()  # type: ignore[attr-defined]


def test_error_of_a_task_is_raised() -> None:
    with single_threads() as pool, pytest.raises(ZeroDivisionError):
        list(ahead(pool, [lambda: 1 // 0], 1))
