"""`rdm recipes` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Command = Callable[..., tuple[int, dict[str, Any], str]]


def test_no_share_of_the_peak_is_a_usage_error_and_not_the_default(rdm: Command) -> None:
    small = ("--set", "objective.predictor.num_layers=1", "--set", "objective.predictor.side=4")
    code, _, error = rdm("recipes", "rarm-tiny", *small, "--utilization", "0")
    assert code == 2
    assert "0" in error
