from pathlib import Path

import pytest

from rdm.errors import StorageError
from rdm.report.data import Estimate
from rdm.report.html import page

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.00 s"),
        (0.416, "0.42 s"),
        (12.44, "12.4 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7440, "2 h 04 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert page.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.30123, "0.3012"),
        (142.34, "142.3"),
        (1234567.0, "1,234,567"),
        (0.0, "0.000"),
        (-0.5, MINUS + "0.5000"),
        (1e-9, "1.000e" + MINUS + "09"),
        (float("nan"), "not available"),
    ],
)
def test_number_has_four_significant_digits(value: float, text: str) -> None:
    assert page.number(value) == text


def test_differences_carry_their_sign() -> None:
    assert [page.signed(0.0177), page.signed(-0.0048), page.signed(0.0)] == [
        "+0.0177",
        MINUS + "0.00480",
        "0.00",
    ]
    assert page.signed_interval(Estimate(0.0, -0.01, 0.02)) == MINUS + "0.0100 to +0.0200"


def test_large_counts_are_in_words() -> None:
    assert [page.large_count(n) for n in (919, 12_400, 11_700_000, 400_920_579, 1_200_000_000)] == [
        "919",
        "12,400",
        "11.7 million",
        "401 million",
        "1.2 billion",
    ]


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", " https://a", "", "//host/x"]
)
def test_urls_that_are_not_of_the_web_are_dropped(url: str) -> None:
    assert page.web_url(url) == ""


def test_write_leaves_only_the_finished_file(tmp_path: Path) -> None:
    page.write_text(tmp_path / "new" / "report.html", "é\ud800")
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["report.html"]
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == "é?"


def test_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.mkdir()  # a rename onto a folder fails at the very last moment
    (target / "inside").touch()
    with pytest.raises((OSError, StorageError)):
        page.write_text(target, "new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.html"]
    assert (target / "inside").exists()
