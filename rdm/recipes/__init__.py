"""Recipes: one file a system, with functions that return full configurations.

A new system is a file here with its `RECIPES`, and a line in the list below.
"""

from __future__ import annotations

from rdm.errors import UsageError
from rdm.recipes import clip, ddpm, first_stages, ldm, ldm_text, rarm
from rdm.recipes import rdm as rdm_recipes
from rdm.recipes.recipe import Recipe
from rdm.training.config import TrainConfig

_SYSTEMS = (
    rdm_recipes,
    ldm,
    ldm_text,
    rarm,
    ddpm,
    clip,
    first_stages,
)

RECIPES: dict[str, Recipe] = {
    name: recipe for system in _SYSTEMS for name, recipe in system.RECIPES.items()
}


def recipe_config(name: str) -> TrainConfig:
    """Return a recipe's configuration.

    Raises:
        UsageError: there is no such recipe.
    """
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}", fix=f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name].config()
