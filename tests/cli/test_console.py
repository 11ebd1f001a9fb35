from __future__ import annotations

import json

import pytest

from rdm.cli.console import show


def test_mapping_has_a_line_for_each_entry_and_sizes_have_units(capsys: pytest.CaptureFixture[str]) -> None:
    show({"takes": {"num_bytes": 6_795_748, "hours": 0.25, "cost": None}, "unchanged": False}, as_json=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["takes num bytes: 6.8 MB", "hours: 0.25", "cost: not known", "unchanged no"]


@pytest.mark.parametrize("nothing", [{}, [], ()])
def test_nothing_is_said_to_be_none(capsys: pytest.CaptureFixture[str], nothing: object) -> None:
    show({"findings": nothing}, as_json=False)
    assert capsys.readouterr().out.split() == ["findings", "none"]


def test_json_keeps_numbers_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show({"num_bytes": 6_795_748, "cost": None}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"num_bytes": 6_795_748, "cost": None}
