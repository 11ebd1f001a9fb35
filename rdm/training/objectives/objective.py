"""What a recipe gives the loop: data in shards, and a module whose forward pass is its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rdm.generators.provenance import Provenance

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin
    from transformers import PreTrainedModel


class Objective(nn.Module, ABC):
    """A network together with its loss: the only thing that differs between recipes.

    The forward pass takes a batch (arrays of `TrainingData` rows as tensors on the device) and
    returns scalars, among them `loss`. All randomness comes from `generator`, so that a step is a
    function of (weights, batch, seed). Parameters that do not train have `requires_grad=False`.
    """

    needs_whole_batch = False
    """Whether the loss compares the samples of a batch, so that no gradients can be accumulated
    over parts of it."""

    step = 0
    """Optimizer steps done so far, which the loop sets: a loss may change in the course of a
    run."""

    provenance: Provenance = Provenance()
    """What the run learned from (the database's version among it); in every checkpoint."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return `{"loss": scalar, ...}`: scalars are logged; values with one entry per sample,
        [B], are written down when the loss is not finite.
        """

    @property
    def networks(self) -> Sequence[ModelMixin | PreTrainedModel]:
        """Networks on which `compile`, `channels_last` and checkpointing of activations act.

        `channels_last` needs convolutions among them.
        """
        return ()

    def preview(
        self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> NDArray[np.uint8] | None:
        """Return pictures uint8 [N, H, W, 3] of networks with given weights, or None.

        Args:
            state: as for `export`.
            batch: training samples, always the same ones.
        """
        return None

    @abstractmethod
    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """Write the model as safetensors with its configuration as JSON.

        Args:
            directory: an existing, empty directory.
            state: fp32 trainable parameters by name as in `named_parameters()`: the EMA weights as
                a rule.
        """
