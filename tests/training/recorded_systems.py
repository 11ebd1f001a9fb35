"""The systems of test_recorded.py in small sizes: how each is built, exported and opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from small_denoiser import SMALL_DENOISER
from torch import Tensor

from rdm.context import Context
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.token_predictor import TokenPredictorConfig, build_token_predictor
from rdm.models.unet import build_denoiser
from rdm.sampling import SampleSettings, open_model
from rdm.training.data.latents import ConditioningConfig, with_mean_vector
from rdm.training.objectives.retrieval_autoregression import (
    RetrievalAutoregressionConfig,
    RetrievalAutoregressionObjective,
)
from rdm.training.objectives.retrieval_diffusion import RetrievalDiffusionConfig, RetrievalDiffusionObjective

PREDICTOR = TokenPredictorConfig(side=8, num_layers=2, width=32, num_heads=2, cross_attention_dim=12, dropout=0.1)


@dataclass(frozen=True)
class System:
    """A system with its recorded losses of six steps."""

    name: str
    kind: Literal["diffusion", "rarm"]
    recorded_losses: tuple[float, ...]
    dropout: float = 0.0
    k_choices: tuple[int, ...] = ()
    mean_vector: bool = False
    shift: float = 0.0
    scale: float = 0.9

    @property
    def autoencoder(self) -> str:
        """The first stage's name."""
        return "assets://autoencoder-vq-f4" if self.kind == "rarm" else "assets://autoencoder-kl-f4"

    @property
    def conditioning(self) -> ConditioningConfig:
        """How neighbors condition."""
        return ConditioningConfig(
            scale=6.0, pool=6, dropout=self.dropout, k_choices=self.k_choices, mean_vector=self.mean_vector
        )

    def objective(self) -> Any:
        """Return the objective, its weights drawn with seed 0."""
        provenance = {"autoencoder": self.autoencoder, "autoencoder_digest": load_autoencoder(self.autoencoder).digest}
        torch.manual_seed(0)
        if self.kind == "rarm":
            config = RetrievalAutoregressionConfig(predictor=PREDICTOR, conditioning=self.conditioning)
            return RetrievalAutoregressionObjective(config, provenance)
        denoiser = SMALL_DENOISER.model_copy(update={"vector_dim": 12 if self.mean_vector else None})
        config = RetrievalDiffusionConfig(denoiser=denoiser, prediction_type="v", conditioning=self.conditioning)
        return RetrievalDiffusionObjective(config, provenance, (self.shift, self.scale))

    def network(self) -> Any:
        """Return a network of the objective's sizes."""
        if self.kind == "rarm":
            return build_token_predictor(PREDICTOR)
        return build_denoiser(SMALL_DENOISER.model_copy(update={"vector_dim": 12 if self.mean_vector else None}))

    def network_of(self, objective: Any) -> Any:
        """Return the objective's network."""
        return objective.predictor if self.kind == "rarm" else objective.denoiser


SYSTEMS = (
    System("rdm", "diffusion", (1.96429, 1.76073, 2.02571, 2.3687, 2.04971, 1.91799), dropout=0.3, k_choices=(2, 4)),
    System(
        "rdm-vector",
        "diffusion",
        (2.33354, 2.01421, 2.13245, 2.33613, 2.15258, 1.94144),
        dropout=0.3,
        mean_vector=True,
    ),
    System("ldm", "diffusion", (2.26453, 1.97552, 2.10192, 2.28798, 2.17919, 1.90116), dropout=1.0),
    System("rarm", "rarm", (6.93067, 6.94264, 6.94954, 6.93444, 6.953, 6.93834), dropout=0.2),
)


def open_exported(system: System, directory: Path, vectors: Tensor, *, guidance_scale: float) -> tuple[Tensor, Any]:
    """Return pictures [3, 3, 32, 32] of seeds 1, 2, 3 that an exported model draws of neighbors, and its first stage.

    Args:
        system: the model's.
        directory: the export.
        vectors: neighbors' embeddings [3, k, 12], zeros for none.
        guidance_scale: of the drawing.
    """
    model = open_model(directory)
    settings = model.effective(SampleSettings(k=vectors.shape[1], num_steps=5, guidance_scale=guidance_scale))
    context = with_mean_vector(Context(tokens=vectors.float() * 6.0), system.conditioning)
    with torch.no_grad():
        return model.draw(context, [1, 2, 3], settings), model.first_stage
