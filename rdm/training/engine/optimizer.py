"""A run's optimizer."""

from __future__ import annotations

import torch
from torch import nn

from rdm.training.config import TrainConfig
from rdm.training.engine.muon import Muon
from rdm.training.engine.training_device import autocast_dtype


def build_optimizer(
    trainable: list[nn.Parameter], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW or Muon over the trainable parameters, as a run asks."""
    betas = (0.9, config.beta2)
    if config.optimizer == "muon":
        dtype = autocast_dtype(config, device) or torch.float32
        return Muon(
            trainable,
            lr=config.learning_rate,
            matrix_scale=config.muon_scale,
            betas=betas,
            dtype=dtype,
        )

    return torch.optim.AdamW(
        trainable,
        lr=config.learning_rate,
        betas=betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
