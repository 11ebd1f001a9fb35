"""LDM from text: latents that attend to a caption's tokens (Rombach et al. 2022)."""

from __future__ import annotations

from rdm.encoders.text_states import TEXT_DIMS
from rdm.generators.conditions import Conditions, TextConfig
from rdm.generators.heads import GaussianConfig
from rdm.models.unet import DenoiserConfig
from rdm.recipes.recipe import Recipe
from rdm.training.config import TrainConfig
from rdm.training.objectives.generative import GenerativeConfig


def ldm_text_tiny() -> TrainConfig:
    """Return a text-conditional LDM of 64 px photographs: minutes on two cores.

    The network of `rdm-tiny` reads the 32 token states of a caption, of MiniLM where the published
    model trains a transformer or takes CLIP's; a tenth of the captions are dropped, so that
    guidance has the empty caption to leave. v-prediction, as minutes of training ask for;
    `--set objective.head.prediction_type=eps` gives back the published objective.
    """
    return TrainConfig(
        recipe="ldm-text-tiny",
        objective=GenerativeConfig(
            network=DenoiserConfig(cross_attention_dim=TEXT_DIMS["minilm"]),
            conditions=Conditions(text=TextConfig()),
            head=GaussianConfig(prediction_type="v"),
        ),
        max_steps=1500,
        batch_size=32,
        learning_rate=1.2e-3,
        warmup_steps=20,
        beta2=0.99,
        ema_decay=0.995,
        checkpoint_every=100,
    )


RECIPES = {
    "ldm-text-tiny": Recipe("LDM from captions, 64 px; minutes on two cores", ldm_text_tiny),
}
