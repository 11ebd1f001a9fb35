"""A named configuration of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rdm.training.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """A named configuration with one line about it."""

    summary: str
    config: Callable[[], TrainConfig]
