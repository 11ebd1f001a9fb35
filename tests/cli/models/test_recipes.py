"""`rdm recipes` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rdm.recipes import RECIPES
from rdm.recipes.costs import kept_costs

Command = Callable[..., tuple[int, dict[str, Any], str]]
FIGURES = ("parameters", "forward_flops", "step_flops")


def test_no_share_of_the_peak_is_a_usage_error_and_not_the_default(rdm: Command) -> None:
    small = ("--set", "objective.network.num_layers=1", "--set", "objective.network.side=4")
    code, _, error = rdm("recipes", "rarm-tiny", *small, "--utilization", "0")
    assert code == 2
    assert "0" in error


def test_the_list_names_every_recipe_with_its_kept_costs(rdm: Command) -> None:
    code, shown, _ = rdm("recipes")
    assert (code, list(shown)) == (0, list(RECIPES))
    for name, cost in kept_costs().items():
        found = shown[name]["cost"]
        stated = {} if cost is None else {key: getattr(cost, key) for key in FIGURES}
        assert {key: found[key] for key in FIGURES if key in found} == stated
