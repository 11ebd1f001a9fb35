from __future__ import annotations

import pyarrow as pa
import pytest

from rdm.database.changes.holdings import known_etags


def ledger(*rows: tuple[str, str, str, str], was_cut: bool = True) -> pa.Table:
    names = ("image_id", "etag", "status", "error_message")
    return pa.Table.from_pylist(
        [{**dict(zip(names, row, strict=True)), "was_cut": was_cut} for row in rows]
    )


def test_living_photographs_are_known_by_their_etag() -> None:
    assert known_etags(ledger(("a", "1", "success", "")), {"a"}) == {"a": "1"}


def test_photographs_that_were_deleted_are_new_again() -> None:
    assert known_etags(ledger(("a", "1", "success", ""), ("b", "1", "deleted", "")), set()) == {}


def test_photographs_that_never_had_a_patch_are_known() -> None:
    assert known_etags(ledger(("a", "1", "success", ""), was_cut=False), set()) == {"a": "1"}
    assert known_etags(ledger(("a", "1", "deleted", ""), was_cut=False), set()) == {}


def test_the_last_row_of_a_photograph_counts() -> None:
    rows = ledger(("a", "1", "failed", "broken picture"), ("a", "2", "success", ""))
    assert known_etags(rows, {"a"}) == {"a": "2"}
    assert known_etags(rows, set()) == {}


@pytest.mark.parametrize("message", ["server error: 503", "timed out", "too many requests: 429"])
def test_failures_that_may_have_passed_are_asked_for_again_on_request(message: str) -> None:
    rows = ledger(("a", "1", "failed", message))
    assert known_etags(rows, set()) == {"a": "1"}
    assert known_etags(rows, set(), retry_failed=True) == {}


@pytest.mark.parametrize(
    ("status", "message"), [("failed", "not found: 404"), ("skipped", "opted out: noai")]
)
def test_other_failures_and_opt_outs_never_are(status: str, message: str) -> None:
    assert known_etags(ledger(("a", "1", status, message)), set(), retry_failed=True) == {"a": "1"}
