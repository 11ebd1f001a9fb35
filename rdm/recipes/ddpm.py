"""DDPM: diffusion on pixels, conditioned on nothing (Ho et al. 2020)."""

from __future__ import annotations

from rdm.diffusion.schedules import ddpm_linear
from rdm.generators.conditions import Conditions
from rdm.generators.heads import GaussianConfig
from rdm.generators.spaces import PixelsConfig
from rdm.models.unconditional import UnconditionalConfig
from rdm.recipes.recipe import Recipe
from rdm.training.config import TrainConfig
from rdm.training.objectives.generative import GenerativeConfig


def ddpm_tiny() -> TrainConfig:
    """Return a DDPM of 32 px pictures: minutes on two cores.

    Noise prediction, the linear schedule and uniform timesteps, as published; attention at the
    lowest resolution only. The cache is of pixels, --autoencoder none --set resolution=32.
    """
    network = UnconditionalConfig(
        in_channels=3,
        out_channels=3,
        sample_size=32,
        block_out_channels=(32, 64, 128),
        attention_levels=(False, False, True),
        layers_per_block=1,
        norm_num_groups=16,
    )

    return TrainConfig(
        recipe="ddpm-tiny",
        objective=_on_pixels(network, held_out_fraction=0.25),
        max_steps=600,
        batch_size=32,
        learning_rate=1e-3,
        warmup_steps=20,
        beta2=0.99,
        ema_decay=0.995,
        checkpoint_every=100,
    )


def ddpm_cifar() -> TrainConfig:
    """Return the official DDPM of CIFAR-10: 35,746,307 parameters, 32 px, dropout 0.1."""
    network = UnconditionalConfig(
        in_channels=3,
        out_channels=3,
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        attention_levels=(False, True, False, False),
        layers_per_block=2,
        dropout=0.1,
        ddpm_details=True,
    )

    return TrainConfig(
        recipe="ddpm-cifar",
        objective=_on_pixels(network, held_out_fraction=0.0),
        max_steps=800_000,
        batch_size=128,
        learning_rate=2e-4,
        lr_schedule="constant",
        warmup_steps=5000,
        weight_decay=0.0,
        ema_decay=0.9999,
        checkpoint_every=5000,
    )


def _on_pixels(network: UnconditionalConfig, *, held_out_fraction: float) -> GenerativeConfig:
    return GenerativeConfig(
        network=network,
        space=PixelsConfig(),
        conditions=Conditions(),
        head=GaussianConfig(schedule=ddpm_linear()),
        held_out_fraction=held_out_fraction,
    )


RECIPES = {
    "ddpm-tiny": Recipe("DDPM, 32 px pictures themselves; minutes on two cores", ddpm_tiny),
    "ddpm-cifar": Recipe("the official DDPM of CIFAR-10, 32 px; one accelerator", ddpm_cifar),
}
