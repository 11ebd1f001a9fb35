"""Count what one sample costs in each recipe's network, into `rdm/recipes/costs.json`.

Run it as `python -m benchmarks.count_costs`.

Nothing is computed: PyTorch counts over shapes without numbers, so the figures are those of every
machine.
"""

from __future__ import annotations

from rdm.recipes import RECIPES
from rdm.recipes.costs import COSTS_FILE, costs_text
from rdm.training.planning.cost import network_cost


def main() -> None:
    """Write the file."""
    costs = {name: network_cost(recipe.config()) for name, recipe in RECIPES.items()}
    COSTS_FILE.write_text(costs_text(costs), encoding="utf-8")
    print(f"{COSTS_FILE}: {len(costs)} recipes")


if __name__ == "__main__":
    main()
