"""A model of random weights, exported as a training exports it: it draws in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from small_denoiser import SMALL_DENOISER

from rdm.database import RetrievalDatabase
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.training.objectives.retrieval_diffusion import RetrievalDiffusionConfig, RetrievalDiffusionObjective

ASSET = "assets://autoencoder-kl-f4"


def write_random_model(directory: Path, database: RetrievalDatabase, autoencoder: str = ASSET) -> Path:
    """Write an RDM of 32 px pictures for a database, and return its folder."""
    network = SMALL_DENOISER.model_copy(update={"cross_attention_dim": database.version.embedding_dim})
    config = RetrievalDiffusionConfig(denoiser=network)
    provenance = {
        "autoencoder": autoencoder,
        "latents_digest": load_autoencoder(autoencoder).latents_digest,
        "resolution": 32,
        "encoder": database.encoder_name,
        "encoder_digest": database.encoder_digest,
        "queries_digest": "",
    }
    torch.manual_seed(0)
    objective = RetrievalDiffusionObjective(config, provenance, (0.0, 1.0))
    directory.mkdir(parents=True, exist_ok=True)
    objective.export(directory, dict(objective.named_parameters()))
    return directory
