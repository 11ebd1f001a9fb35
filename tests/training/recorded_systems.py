"""The systems of test_recorded.py in small sizes: how each is built, exported and opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from small_denoiser import SMALL_DENOISER
from torch import Tensor

from rdm.context import Context
from rdm.generators.conditions import Conditions, Known, NeighborCondition, NeighborsConfig
from rdm.generators.heads import AutoregressiveConfig, GaussianConfig
from rdm.generators.model_folder import open_model
from rdm.generators.provenance import Provenance
from rdm.generators.sample_settings import SampleSettings
from rdm.generators.spaces import LatentSpace, TokensConfig, TokenSpace
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.networks import build_network
from rdm.models.token_predictor import TokenPredictorConfig
from rdm.models.unet import DenoiserConfig
from rdm.training.objectives.generative import GenerativeConfig, GenerativeObjective

PREDICTOR = TokenPredictorConfig(
    side=8, num_layers=2, width=32, num_heads=2, cross_attention_dim=12, dropout=0.1
)


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
    def neighbors(self) -> NeighborsConfig:
        """How neighbors condition."""
        return NeighborsConfig(
            scale=6.0,
            pool=6,
            dropout=self.dropout,
            k_choices=self.k_choices,
            mean_vector=self.mean_vector,
        )

    @property
    def network_config(self) -> DenoiserConfig | TokenPredictorConfig:
        """The network's sizes."""
        if self.kind == "rarm":
            return PREDICTOR
        return SMALL_DENOISER.model_copy(update={"vector_dim": 12 if self.mean_vector else None})

    def objective(self) -> GenerativeObjective:
        """Return the objective, its weights drawn with seed 0."""
        first_stage = load_autoencoder(self.autoencoder)
        provenance = Provenance(
            autoencoder=self.autoencoder, latents_digest=first_stage.latents_digest
        )
        conditions = Conditions(neighbors=self.neighbors)
        torch.manual_seed(0)
        if self.kind == "rarm":
            config = GenerativeConfig(
                network=PREDICTOR,
                space=TokensConfig(),
                conditions=conditions,
                head=AutoregressiveConfig(),
            )
            space = TokenSpace(first_stage, 8)
        else:
            head = GaussianConfig(prediction_type="v")
            config = GenerativeConfig(network=self.network_config, conditions=conditions, head=head)
            space = LatentSpace(first_stage, self.shift, self.scale)
        return GenerativeObjective(
            config, provenance, space, [NeighborCondition(self.neighbors, 12)]
        )

    def network(self) -> Any:
        """Return a network of the objective's sizes."""
        return build_network(self.network_config)

    def network_of(self, objective: GenerativeObjective) -> Any:
        """Return the objective's network."""
        return objective.generator.network


SYSTEMS = (
    System(
        "rdm",
        "diffusion",
        (1.96429, 1.76073, 2.02571, 2.3687, 2.04971, 1.91799),
        dropout=0.3,
        k_choices=(2, 4),
    ),
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


def open_exported(
    system: System, directory: Path, vectors: Tensor, *, guidance_scale: float
) -> tuple[Tensor, Any]:
    """Return pictures [3, 3, 32, 32] of seeds 1, 2, 3 that an exported model draws of neighbors,
    and its first stage.

    Args:
        system: the model's.
        directory: the export.
        vectors: neighbors' embeddings [3, k, 12], zeros for none.
        guidance_scale: of the drawing.
    """
    model = open_model(directory)
    settings = SampleSettings(k=vectors.shape[1], num_steps=5, guidance_scale=guidance_scale)
    known = [Known(neighbors=row.float()) for row in vectors]
    if system.dropout == 1:
        known = [Known()] * len(vectors)
    context: Context = model.generator.context(known)
    return model.draw(context, [1, 2, 3], settings), model.first_stage
