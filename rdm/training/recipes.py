"""Recipes: functions that return a full configuration. A system is a recipe, not a fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rdm.errors import UsageError
from rdm.training.config import TrainConfig
from rdm.training.first_stage_recipes import FIRST_STAGE_RECIPES
from rdm.training.objectives.contrastive import ContrastiveConfig
from rdm.training.retrieval_recipes import (
    ldm_imagenet,
    ldm_tiny,
    rarm_imagenet,
    rarm_tiny,
    rdm_32,
    rdm_64,
    rdm_ffhq,
    rdm_imagenet,
    rdm_tiny,
)


@dataclass(frozen=True)
class Recipe:
    """A named configuration with one line about it."""

    summary: str
    config: Callable[[], TrainConfig]


def clip_lite() -> TrainConfig:
    """Return the recipe of the embedded encoder's heads: symmetric InfoNCE on captioned photographs."""
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


RECIPES: dict[str, Recipe] = {
    "rdm-tiny": Recipe("RDM, 64 px, 16x16x4 latents; minutes on two cores", rdm_tiny),
    "rdm-32": Recipe("RDM, 32 px, 8x8x4 latents; one accelerator, or a patient CPU", rdm_32),
    "rdm-64": Recipe("RDM, 64 px, 16x16x4 latents; one accelerator", rdm_64),
    "rdm-imagenet": Recipe("the official RDM of ImageNet, 256 px, VQ-f4", rdm_imagenet),
    "rdm-ffhq": Recipe("the official RDM of FFHQ, 256 px, VQ-f4", rdm_ffhq),
    "ldm-tiny": Recipe("rdm-tiny without neighbors: its baseline", ldm_tiny),
    "ldm-imagenet": Recipe("rdm-imagenet without neighbors: its baseline", ldm_imagenet),
    "rarm-tiny": Recipe("RARM, 64 px, 16x16 tokens of VQ-f4; minutes on two cores", rarm_tiny),
    "rarm-imagenet": Recipe("RARM in the official size, 256 px, VQ-f16", rarm_imagenet),
    "clip-lite": Recipe("projection heads of the embedded encoder, on captioned photographs", clip_lite),
    **{name: Recipe(summary, config) for name, (summary, config) in FIRST_STAGE_RECIPES.items()},
}


def recipe_config(name: str) -> TrainConfig:
    """Return a recipe's configuration.

    Raises:
        UsageError: there is no such recipe.
    """
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}", fix=f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name].config()
