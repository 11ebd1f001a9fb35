"""Exponential moving averages of the trainable weights, in fp32, outside the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ema:
    """Keeps `average <- decay * average + (1 - decay) * weight` of owned weights, by decay.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)) after n updates, so that short runs do
    not remember their initial weights.
    """

    def __init__(self, weights: Sequence[Tensor], decays: Sequence[float]) -> None:
        """Start every average at the weights, a list of tensors in a fixed order."""
        self.decays = tuple(decays)
        self.num_updates = 0
        self.averages = {
            decay: [weight.detach().float().clone() for weight in weights] for decay in self.decays
        }

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor]) -> None:
        """Take the weights of a step in; the same tensors in the same order as at the start."""
        self.num_updates += 1
        values = [weight.detach().float() for weight in weights]
        if not values:
            return
        for limit, averages in self.averages.items():
            decay = min(limit, (1 + self.num_updates) / (10 + self.num_updates))
            torch._foreach_lerp_(averages, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
