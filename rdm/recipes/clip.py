"""CLIP: the embedded encoder's heads, by symmetric InfoNCE."""

from __future__ import annotations

from rdm.recipes.recipe import Recipe
from rdm.training.config import TrainConfig
from rdm.training.objectives.contrastive import ContrastiveConfig


def clip_lite() -> TrainConfig:
    """Return the recipe of the embedded encoder's heads: InfoNCE on captioned photographs."""
    return TrainConfig(
        recipe="clip-lite",
        objective=ContrastiveConfig(),
        max_steps=240,
        batch_size=512,
        learning_rate=1e-3,
        warmup_steps=50,
        weight_decay=0.1,
        beta2=0.98,
        ema_decay=0.99,
        precision="fp32",
        checkpoint_every=60,
    )


RECIPES = {
    "clip-lite": Recipe(
        "projection heads of the embedded encoder, on captioned photographs", clip_lite
    )
}
