"""The kept costs are those of the recipes as they are."""

from __future__ import annotations

import pytest

from rdm.recipes import RECIPES, recipe_config
from rdm.recipes.costs import COSTS_FILE, costs_text, kept_costs
from rdm.training.planning.cost import network_cost

SMALL = ("rarm-tiny",)


def test_every_recipe_is_in_the_file_and_no_other() -> None:
    assert list(kept_costs()) == list(RECIPES)


def test_the_file_is_what_the_command_writes_of_these_costs() -> None:
    assert COSTS_FILE.read_text(encoding="utf-8") == costs_text(kept_costs())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in RECIPES],
)
def test_a_recipe_costs_what_the_file_says(name: str) -> None:
    assert network_cost(recipe_config(name)) == kept_costs()[name]
