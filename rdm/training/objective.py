"""What a recipe gives the loop: data in shards, and a module whose forward pass is its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shard:
    """One shard of training data: its stem (file name without ending) and how many samples it holds."""

    stem: str
    num_samples: int


class TrainingData(Protocol):
    """Training samples in shards that are read whole, in an order that the loop decides."""

    @property
    def shards(self) -> Sequence[Shard]:
        """Every shard, in a fixed order."""
        ...

    def load_shard(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays of one shard; each has `shards[index].num_samples` rows."""
        ...


class Objective(nn.Module, ABC):
    """A network together with its loss: the only thing that differs between recipes.

    The forward pass takes a batch (arrays of `TrainingData` rows as tensors on the device) and returns scalars,
    among them `loss`. All randomness comes from `generator`, so that a step is a function of (weights, batch, seed).
    Parameters that do not train have `requires_grad=False`.
    """

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return `{"loss": scalar, ...}`; the other scalars are logged."""

    @abstractmethod
    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """Write the model as safetensors and its configuration as JSON, ready to be opened by a user.

        Args:
            directory: an existing, empty directory.
            state: fp32 trainable parameters by name as in `named_parameters()`: the EMA weights as a rule.
        """
