"""RARM: a causal transformer over codebook rows with neighbors (Blattmann et al. 2022)."""

from __future__ import annotations

from rdm.generators.conditions import Conditions, NeighborsConfig
from rdm.generators.heads import AutoregressiveConfig
from rdm.generators.spaces import TokensConfig
from rdm.models.token_predictor import TokenPredictorConfig, rarm_imagenet_predictor
from rdm.recipes.official import RAW_NEIGHBORS, official
from rdm.recipes.recipe import Recipe
from rdm.training.config import TrainConfig
from rdm.training.objectives.generative import GenerativeConfig


def rarm_imagenet() -> TrainConfig:
    """Return RARM in the official size: 18 layers of 12 heads x 64, 16x16 tokens of VQ-f16, Z =
    16384, 256 px.

    183,307,008 parameters in GPT-2's layers, see `rarm_imagenet_predictor`. AdamW at 5e-4 and
    batches of 50, two of them per step. The cache is of a VQ-f16 first stage, --set content=indices
    --set resolution=256.
    """
    return official(
        "rarm-imagenet",
        GenerativeConfig(
            network=rarm_imagenet_predictor(),
            space=TokensConfig(),
            conditions=RAW_NEIGHBORS,
            head=AutoregressiveConfig(),
        ),
        batch_size=100,
        learning_rate=5e-4,
        warmup_steps=100,
    )


def rarm_tiny() -> TrainConfig:
    """Return a RARM of 64 px photographs, 16x16 tokens of a VQ-f4: minutes on two cores.

    Its first stage is to be `assets://autoencoder-vq-f4`; another one's codebook: --set
    objective.network.codebook_size=Z. Conditioned as `rdm-tiny`, and for the same reasons; dropout,
    because a transformer learns hundreds of photographs by heart, and a trained null context,
    because guidance on the logits of an untrained one says nothing.
    """
    return TrainConfig(
        recipe="rarm-tiny",
        objective=GenerativeConfig(
            network=TokenPredictorConfig(dropout=0.1),
            space=TokensConfig(),
            conditions=Conditions(neighbors=NeighborsConfig(dropout=0.1, scale=6.0, pool=20)),
            head=AutoregressiveConfig(),
            held_out_fraction=0.25,
        ),
        max_steps=900,
        batch_size=32,
        learning_rate=1.5e-3,
        warmup_steps=50,
        beta2=0.99,
        ema_decay=0.995,
        checkpoint_every=100,
    )


RECIPES = {
    "rarm-tiny": Recipe("RARM, 64 px, 16x16 tokens of VQ-f4; minutes on two cores", rarm_tiny),
    "rarm-imagenet": Recipe("RARM in the official size, 256 px, VQ-f16", rarm_imagenet),
}
