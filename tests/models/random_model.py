"""A model of random weights, exported as a training exports it: it draws in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from small_denoiser import SMALL_DENOISER

from rdm.database import RetrievalDatabase
from rdm.generators.generator import GeneratorConfig
from rdm.generators.model_folder import model_info, write_model
from rdm.generators.provenance import Provenance
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.networks import build_network

ASSET = "assets://autoencoder-kl-f4"


def write_random_model(
    directory: Path, database: RetrievalDatabase, autoencoder: str = ASSET, seed: int = 0
) -> Path:
    """Write an RDM of 32 px pictures for a database, and return its folder."""
    encoder = (database.encoder_name, database.encoder_digest)
    return write_model_of_random_weights(
        directory, database.version.embedding_dim, encoder, autoencoder, seed
    )


def write_model_of_random_weights(
    directory: Path,
    embedding_dim: int,
    encoder: tuple[str, str],
    autoencoder: str = ASSET,
    seed: int = 0,
) -> Path:
    """Write an RDM of 32 px pictures for an encoder, given by name and digest, and return its
    folder."""
    sizes = SMALL_DENOISER.model_copy(update={"cross_attention_dim": embedding_dim})
    provenance = Provenance(
        autoencoder=autoencoder,
        latents_digest=load_autoencoder(autoencoder).latents_digest,
        resolution=32,
        encoder=encoder[0],
        encoder_digest=encoder[1],
    )
    torch.manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    write_model(
        directory, model_info(GeneratorConfig(network=sizes), provenance), build_network(sizes)
    )
    return directory
