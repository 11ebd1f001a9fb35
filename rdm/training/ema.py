"""Exponential moving average of the trainable weights, in fp32, outside the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Keeps `average <- decay * average + (1 - decay) * weight` for every trainable parameter.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)) after n updates, so that short runs do not remember their
    initial weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._averages = {name: parameter.detach().float().clone() for name, parameter in _trainable(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the weights of a step in."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [parameter.detach().float() for _, parameter in _trainable(module)]
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def state(self) -> dict[str, Tensor]:
        """Return the averages by parameter name, fp32."""
        return dict(self._averages)

    def load(self, state: Mapping[str, Tensor], num_updates: int) -> None:
        """Take up averages that `state` gave.

        Raises:
            KeyError: a parameter is missing.
        """
        self.num_updates = num_updates
        for name, average in self._averages.items():
            average.copy_(state[name])


def _trainable(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
