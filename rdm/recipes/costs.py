"""Costs of each recipe's network per sample, kept in `costs.json` for quick listings.

`python -m benchmarks.count_costs` writes the file again; run it after a recipe or a network has
changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rdm.training.planning.cost import NetworkCost

COSTS_FILE = Path(__file__).with_name("costs.json")


def kept_costs() -> dict[str, NetworkCost | None]:
    """Return the cost of each recipe's network by name; None for heads on ready features."""
    kept = json.loads(COSTS_FILE.read_text(encoding="utf-8"))
    return {name: None if cost is None else NetworkCost(**cost) for name, cost in kept.items()}


def costs_text(costs: Mapping[str, NetworkCost | None]) -> str:
    """Return costs by recipe as the text of `costs.json`."""
    values = {name: cost and asdict(cost) for name, cost in costs.items()}
    return json.dumps(values, indent=1) + "\n"
