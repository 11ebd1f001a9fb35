from __future__ import annotations

from pathlib import Path

from rdm.sources.fetching.fetched import Shelf

ROW = {"num_bytes": 3, "status": "success"}


def test_photograph_is_there_for_the_next_run(tmp_path: Path) -> None:
    Shelf(tmp_path).put(7, ROW, b"abc")
    assert Shelf(tmp_path).has(7)
    assert Shelf(tmp_path).get(7) == (ROW, b"abc")


def test_photograph_that_lost_its_bytes_is_not_there(tmp_path: Path) -> None:
    Shelf(tmp_path).put(7, ROW, b"abc")
    (tmp_path / "shelf" / "000007").write_bytes(b"")
    assert not Shelf(tmp_path).has(7)


def test_photograph_without_its_row_is_not_there(tmp_path: Path) -> None:
    Shelf(tmp_path).put(7, ROW, b"abc")
    (tmp_path / "shelf" / "000007.json").write_bytes(b'{"num_b')
    assert not Shelf(tmp_path).has(7)


def test_failures_are_there_for_the_next_run(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.fail(1, 0, "not found: HTTP 404")
    shelf.settle(2, "opted out: X-Robots-Tag")
    shelf.save()
    again = Shelf(tmp_path)
    assert [again.next_candidate(number) for number in range(3)] == [0, 1, None]
    assert [again.message(number) for number in range(3)] == [
        "",
        "not found: HTTP 404",
        "opted out: X-Robots-Tag",
    ]


def test_failure_noted_twice_counts_once(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for _ in range(2):
        shelf.fail(1, 0, "not found: HTTP 404")
    assert shelf.next_candidate(1) == 1


def test_of_several_failures_one_that_may_pass_is_told(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.fail(1, 0, "server error: HTTP 500")
    shelf.fail(1, 1, "not found: HTTP 404")
    assert shelf.message(1) == "server error: HTTP 500"
