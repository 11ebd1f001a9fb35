"""What clients are told of an error."""

from __future__ import annotations

import pickle

import pytest

from rdm.errors import (
    DatabaseError,
    DeviceError,
    EncoderMismatchError,
    SourceError,
    StorageError,
    UsageError,
)
from rdm.serving.problems import CODES, ServeError, problem_of


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UsageError("k is too large"), 422, "invalid_request"),
        (SourceError("no picture"), 422, "invalid_request"),
        (EncoderMismatchError("two encoders"), 409, "encoder_mismatch"),
        (DatabaseError("a part is gone"), 503, "unavailable"),
        (StorageError("disk full"), 503, "unavailable"),
        (DeviceError("no GPU"), 503, "out_of_memory"),
        (ServeError("patch_removed", "patch 7 was removed"), 410, "patch_removed"),
    ],
)
def test_an_error_of_ours_says_what_where_and_how_to_mend_it(
    error: UsageError, status: int, code: str
) -> None:
    error.where, error.fix = "seeds", "ask for fewer"
    problem = problem_of(error, "req_1")
    assert (problem.status, problem.type) == (status, f"/errors/{code}")
    assert (problem.detail, problem.fix, problem.request_id) == (error.what, error.fix, "req_1")
    assert problem.where == "seeds"


def test_a_bug_tells_nothing_but_the_id_of_the_request() -> None:
    problem = problem_of(KeyError("/home/me/secret"), "req_1")
    assert problem.status == 500
    assert "secret" not in problem.model_dump_json()
    assert "req_1" in problem.fix


def test_folders_of_the_server_are_not_told() -> None:
    problem = problem_of(DatabaseError("a part is gone", where="/home/me/birds"))
    assert problem.where == "birds"


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_an_http_error_with_a_title(code: str) -> None:
    problem = problem_of(ServeError(code, "what"))
    assert 400 <= problem.status <= 503
    assert problem.title
    assert problem.retryable <= (problem.status in (429, 503))


def test_an_error_crosses_processes_whole() -> None:
    error = ServeError("queue_full", "full", where="queue", fix="wait", retry_after=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.what, copy.where, copy.fix, copy.retry_after) == (
        "queue_full",
        "full",
        "queue",
        "wait",
        3,
    )
