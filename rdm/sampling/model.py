"""A trained model: denoiser, decoding head, first stage, and what it was trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rdm.database import RetrievalDatabase
from rdm.diffusion.heads import GaussianHead
from rdm.errors import EncoderMismatchError, ModelError
from rdm.models.denoiser import Denoiser, load_denoiser
from rdm.models.first_stage import FirstStage, load_autoencoder
from rdm.training.objectives.retrieval_diffusion import RetrievalDiffusionConfig


@dataclass(frozen=True)
class RetrievalDiffusionModel:
    """Everything that turns neighbors into pictures."""

    directory: Path
    config: RetrievalDiffusionConfig
    info: dict[str, Any]
    denoiser: Denoiser
    head: GaussianHead
    first_stage: FirstStage

    @classmethod
    def open(cls, directory: Path, device: str = "cpu") -> RetrievalDiffusionModel:
        """Open a model directory: `model.json`, and `denoiser/` in diffusers' layout.

        Raises:
            ModelError: the directory holds no such model, or its first stage is no longer the same.
        """
        path = directory / "model.json"
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            config = RetrievalDiffusionConfig.model_validate(info["objective"])
        except FileNotFoundError as error:
            raise ModelError(
                "there is no model here",
                where=directory,
                fix="give --model the `model` folder below what `rdm train --out` wrote",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"model.json is damaged: {error}", where=path, fix="export the model again") from error
        first_stage = load_autoencoder(info["autoencoder"])
        if first_stage.digest != info["autoencoder_digest"]:
            raise ModelError(
                "the model was trained with another first stage",
                where=info["autoencoder"],
                fix="restore that first stage, or train again",
            )
        denoiser = load_denoiser(directory / "denoiser").to(device)
        return cls(directory, config, info, denoiser, config.head().to(device), first_stage)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one latent."""
        side = self.config.denoiser.sample_size
        return self.config.denoiser.out_channels, side, side

    @property
    def device(self) -> torch.device:
        """Where the denoiser lies."""
        return next(self.denoiser.parameters()).device

    def check_database(self, database: RetrievalDatabase) -> None:
        """Raise EncoderMismatchError unless the database's embeddings are of the encoder that the model was trained
        with.
        """
        if database.encoder_digest != self.info["encoder_digest"]:
            raise EncoderMismatchError(
                f"the model was trained with embeddings of {self.info['encoder']} {self.info['encoder_digest']}, the "
                f"database holds those of {database.encoder_name} {database.encoder_digest}",
                where=database.folder.url,
                fix="build the database with the model's encoder",
            )
