from __future__ import annotations

import json

import pytest

from rdm.cli.console import console_progress, in_range, show, show_rows
from rdm.progress import tracking


def test_mapping_has_a_line_for_each_entry_and_sizes_have_units(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(
        {"takes": {"num_bytes": 6_795_748, "hours": 0.25, "cost": None}, "unchanged": False},
        as_json=False,
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["takes num bytes: 6.8 MB", "hours: 0.25", "cost: not known", "unchanged no"]


@pytest.mark.parametrize("nothing", [{}, [], ()])
def test_nothing_is_said_to_be_none(capsys: pytest.CaptureFixture[str], nothing: object) -> None:
    show({"findings": nothing}, as_json=False)
    assert capsys.readouterr().out.split() == ["findings", "none"]


def test_json_keeps_numbers_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show({"num_bytes": 6_795_748, "cost": None}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"num_bytes": 6_795_748, "cost": None}


def test_brackets_in_a_result_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show({"root": "b[/nope]", "findings": ["a[red].jpg"]}, as_json=False, title="[/title]")
    assert capsys.readouterr().out.split() == [
        "[/title]",
        "root",
        "b[/nope]",
        "findings",
        "a[red].jpg",
    ]


def test_brackets_in_rows_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(["image"], [["a[/x].jpg"], ["[red]b.jpg"]], "[red] owl")
    out = capsys.readouterr().out
    assert [text in out for text in ("a[/x].jpg", "[red]b.jpg", "[red] owl")] == [True, True, True]


def test_brackets_in_progress_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal then
    monkeypatch.setenv("COLUMNS", "200")
    with console_progress(), tracking("s[/s]", 1, "u[/u]") as tracker:
        tracker.advance(note="n[red]")
    shown = capsys.readouterr().err
    assert [text in shown for text in ("s[/s]", "u[/u]", "n[red]")] == [True, True, True]


@pytest.mark.parametrize("value", [-1, 0, 1.5, float("nan")])
def test_number_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="Must be from 0 to 1, but not 0"):
        in_range(0, 1, excluding=0)(float, value)


@pytest.mark.parametrize("value", [None, 0.5, 1])
def test_number_in_its_range_passes(value: float | None) -> None:
    in_range(0, 1, excluding=0)(float, value)
