"""Who enters the queue, and whose turn it is."""

from __future__ import annotations

from typing import Any

import pytest
from jobs.made_jobs import made_job

from rdm.serving.jobs.queue import FairQueue, Row, check_admission, shape_of
from rdm.serving.jobs.records import Job
from rdm.serving.problems import ServeError
from rdm.serving.settings import Limits


def rows_of(job: Job, shape: int = 1) -> list[Row]:
    return [Row(job, index, shape) for index in range(len(job.request.seed_list))]


def drawn(queue: FairQueue) -> list[list[str]]:
    """The clients of each batch, in order, until the queue is empty."""
    found = []
    while batch := queue.next_batch():
        found.append([row.job.client for row in batch])
    return found


@pytest.mark.parametrize(("count", "shape"), [(1, 1), (2, 2), (3, 4), (4, 4), (9, 4)])
def test_a_batch_has_a_canonical_shape(count: int, shape: int) -> None:
    assert shape_of(count, (1, 2, 4)) == shape


def test_clients_take_turns_however_much_one_of_them_asks() -> None:
    queue = FairQueue()
    queue.add(rows_of(made_job("greedy", "0-15")))
    for number in range(3):
        queue.add(rows_of(made_job(f"other{number}")))
    order = [clients[0] for clients in drawn(queue)]
    assert order[:4] == ["greedy", "other0", "other1", "other2"]
    assert order[4:] == ["greedy"] * 15


def test_rows_of_equal_settings_share_a_batch_across_clients() -> None:
    queue = FairQueue()
    queue.add(rows_of(made_job("a", "0-2"), shape=4))
    queue.add(rows_of(made_job("b", "5"), shape=4))
    assert drawn(queue) == [["a", "a", "a", "b"]]


@pytest.mark.parametrize("other", [{"k": 3}, {"steps": 11}])
def test_rows_of_other_settings_do_not(other: dict[str, Any]) -> None:
    queue = FairQueue()
    queue.add(rows_of(made_job("a", "0-2"), shape=4))
    queue.add(rows_of(made_job("b", "5", **other), shape=4))
    assert drawn(queue) == [["a", "a", "a"], ["b"]]


def test_drafts_go_first_but_take_at_most_every_second_batch() -> None:
    queue = FairQueue()
    queue.add(rows_of(made_job("slow", "0-3")))
    queue.add(rows_of(made_job("typing", "0-3", draft=True)))
    order = [clients[0] for clients in drawn(queue)]
    assert order == ["typing", "slow"] * 4


def test_a_job_that_is_dropped_leaves_the_others() -> None:
    queue = FairQueue()
    gone, kept = made_job("a", "0-3"), made_job("a", "4-5")
    queue.add([*rows_of(gone), *rows_of(kept)])
    assert queue.remove(gone) == 4
    assert [row.job for row in queue.rows] == [kept, kept]


def test_rows_of_a_dead_drawer_come_before_what_the_client_asked_later() -> None:
    queue = FairQueue()
    later, first = made_job("a", "7"), made_job("a", "0-1")
    queue.add(rows_of(later))
    queue.add(rows_of(first), first=True)
    assert [row.seed for row in queue.rows] == [0, 1, 7]


def refusal(
    *, steps: int = 10, client: str = "a", jobs: list[Job], **limits: float
) -> ServeError | None:
    try:
        check_admission(steps, client, jobs, Limits.model_validate(limits), 0.1)
    except ServeError as error:
        return error
    return None


def test_an_idle_server_admits_whatever_its_limits_on_single_jobs_allow() -> None:
    assert refusal(steps=100_000, jobs=[]) is None


def test_a_client_has_only_so_many_jobs_and_others_still_enter() -> None:
    jobs = [made_job("a") for _ in range(2)]
    full = refusal(jobs=jobs, max_per_client=2)
    assert full is not None
    assert full.code == "client_queue_full"
    assert (full.retry_after or 0) >= 1
    assert refusal(jobs=jobs, max_per_client=2, client="b") is None


def test_the_queue_has_an_end() -> None:
    full = refusal(jobs=[made_job("b") for _ in range(3)], max_queued=3)
    assert full is not None
    assert full.code == "queue_full"


def test_nobody_is_admitted_to_a_wait_over_the_limit() -> None:
    waiting = [made_job("b", "0-3", steps=10)]  # 4 seconds
    assert refusal(jobs=waiting, steps=10, max_wait=5.01) is None
    full = refusal(jobs=waiting, steps=20, max_wait=5.01)
    assert full is not None
    assert full.code == "queue_full"


def test_ended_jobs_do_not_count_as_seconds() -> None:
    ended = made_job("b", "0-3", steps=100)
    ended.state = "done"
    assert refusal(jobs=[ended], steps=10, max_wait=2) is None
