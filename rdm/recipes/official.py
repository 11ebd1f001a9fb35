"""What the official configurations of RDM and RARM have in common."""

from __future__ import annotations

from rdm.generators.conditions import Conditions, NeighborsConfig
from rdm.training.config import TrainConfig
from rdm.training.objectives.generative import GenerativeConfig

RAW_NEIGHBORS = Conditions(
    neighbors=NeighborsConfig(embedding="raw", scale=1.0, k_train=4, dropout=0.0)
)
"""The official conditioning: four neighbors, their vectors as the encoder gives them, always
there."""


def official(
    name: str,
    objective: GenerativeConfig,
    *,
    warmup_steps: int,
    batch_size: int = 50,
    learning_rate: float = 1e-4,
) -> TrainConfig:
    """Return the official training of a system; 500,000 steps are ours.

    Args:
        name: of the recipe.
        objective: the system.
        warmup_steps: of the learning rate.
        batch_size: of all devices together.
        learning_rate: after warm-up, constant.
    """
    return TrainConfig(
        recipe=name,
        objective=objective,
        max_steps=500_000,
        batch_size=batch_size,
        learning_rate=learning_rate,
        lr_schedule="constant",
        warmup_steps=warmup_steps,
        ema_decay=0.9999,
        checkpoint_every=5000,
    )
