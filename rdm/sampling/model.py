"""A trained model: network, decoding head, first stage, and what it was trained with."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from rdm.config import Config, digest_json
from rdm.context import Context
from rdm.database import RetrievalDatabase
from rdm.diffusion.autoregressive import DrawSettings, autoregressive_sample
from rdm.diffusion.heads import GaussianHead
from rdm.diffusion.samplers import Step
from rdm.errors import EncoderMismatchError, ModelError, UsageError
from rdm.models.first_stage.first_stage import FirstStage, to_uint8
from rdm.models.precision import autocast
from rdm.models.token_predictor import TokenPredictor, load_token_predictor
from rdm.models.unet import Denoiser, load_denoiser
from rdm.sampling.record import Setting
from rdm.storage import sha256_file
from rdm.training.data.latents import ConditioningConfig, RetrievalConfig
from rdm.training.model_folder import INFO, open_first_stage
from rdm.training.objectives.retrieval_autoregression import RetrievalAutoregressionConfig
from rdm.training.objectives.retrieval_diffusion import RetrievalDiffusionConfig


class SampleSettings(Config):
    """How pictures are drawn."""

    k: int = Field(default=4, ge=1, description="neighbors that condition a sample; need not be the training's k")
    guidance_scale: float = Field(default=2.0, ge=0, description="s of e_u + s (e_c - e_u); 1: no guidance")
    guidance_interval: tuple[float, float] | None = Field(
        default=None,
        description="diffusion: log-SNRs between which guidance acts, as [-3,3]: faster, often better; None: all",
    )
    batch_size: int = Field(default=32, ge=1, description="samples drawn at once")
    num_steps: int = Field(default=100, ge=1, description="diffusion: DDIM steps")
    eta: float = Field(
        default=1.0, ge=0, le=1, description="diffusion: DDIM's eta; 0 is deterministic, RDM samples with 1"
    )
    temperature: float = Field(default=1.0, ge=0, description="RARM: divides the logits; 0: the likeliest token")
    top_k: int | None = Field(default=None, ge=1, description="RARM: draw of the k likeliest tokens; None: of all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="RARM: draw of the likeliest with this probability")

    @field_validator("guidance_interval")
    @classmethod
    def _rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("the lower log-SNR comes first, as in [-3,3]")
        return value


@dataclass(frozen=True)
class DrawStep:
    """What is reported after each step of a batch: a denoising step of a diffusion model, a token of a RARM.

    Attributes:
        seeds: of the batch's pictures.
        index: 1 .. total.
        total: steps of the batch.
        preview: returns the pictures as they would be now, uint8 [B, H, W, 3]; they are decoded only when it is called.
    """

    seeds: tuple[int, ...]
    index: int
    total: int
    preview: Callable[[], NDArray[np.uint8]]


OnDrawStep = Callable[[DrawStep], object]


@dataclass(frozen=True)
class RetrievalModel(ABC):
    """Everything that turns neighbors into pictures."""

    directory: Path
    info: dict[str, Any]
    first_stage: FirstStage

    # Settings that say nothing to this kind of model.
    idle_settings: ClassVar[frozenset[str]]

    @property
    @abstractmethod
    def objective(self) -> RetrievalConfig:
        """What the network was trained for."""

    @property
    def conditioning(self) -> ConditioningConfig:
        """How neighbors became context in training."""
        return self.objective.conditioning

    @property
    def unconditional(self) -> bool:
        """Whether the model never saw neighbors: an LDM."""
        return self.conditioning.unconditional

    @property
    @abstractmethod
    def context_dim(self) -> int:
        """Length of a context token."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network lies."""

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the model's files, its first stage's included."""
        digests = [self.first_stage.digest]
        for path in sorted(self.directory.rglob("*")):
            if path.is_file() and path.suffix in (".json", ".safetensors"):
                digests.append(f"{path.relative_to(self.directory)} {sha256_file(path)}")
        return digest_json(digests)

    @abstractmethod
    def draw(
        self,
        context: Context,
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: OnDrawStep | None = None,
    ) -> Tensor:
        """Return pictures float32 [B, 3, H, W] in [-1, 1], one per seed and row of the context."""

    def effective(self, settings: SampleSettings) -> SampleSettings:
        """Return the settings as they act: without neighbors there is nothing to be guided towards."""
        scale = 1.0 if self.unconditional else settings.guidance_scale
        interval = None if scale == 1 else settings.guidance_interval
        return settings.model_copy(update={"guidance_scale": scale, "guidance_interval": interval})

    def acting(self, settings: SampleSettings) -> dict[str, Setting]:
        """Return the settings that act on this model, by name: neither a RARM's steps nor an LDM's neighbors."""
        idle = {*self.idle_settings, *(("k",) if self.unconditional else ())}
        return self.effective(settings).model_dump(mode="json", exclude=idle)

    def check_database(self, database: RetrievalDatabase) -> None:
        """Raise EncoderMismatchError unless the database's embeddings are of the encoder that the model was trained
        with. Any database will do for a model that reads no neighbors.
        """
        if not self.unconditional and database.encoder_digest != self.info["encoder_digest"]:
            raise EncoderMismatchError(
                f"the model was trained with embeddings of {self.info['encoder']} {self.info['encoder_digest']}, the "
                f"database holds those of {database.encoder_name} {database.encoder_digest}",
                where=database.folder.url,
                fix="build the database with the model's encoder",
            )


@dataclass(frozen=True)
class RetrievalDiffusionModel(RetrievalModel):
    """RDM: a denoiser with the Gaussian head."""

    idle_settings: ClassVar[frozenset[str]] = frozenset({"temperature", "top_k", "top_p"})
    config: RetrievalDiffusionConfig
    denoiser: Denoiser
    head: GaussianHead

    @classmethod
    def open(cls, directory: Path, device: torch.device | str = "cpu") -> RetrievalDiffusionModel:
        """Open a model directory: `model.json`, and `denoiser/` in diffusers' layout.

        Raises:
            ModelError: the directory holds no such model, or its first stage is no longer the same.
        """
        info = _read_info(directory)
        config = _validated(RetrievalDiffusionConfig, info, directory)
        first_stage = open_first_stage(directory, info).to(device)
        denoiser = load_denoiser(directory / "denoiser").to(device)
        return cls(directory, info, first_stage, config, denoiser, config.head().to(device))

    @property
    def objective(self) -> RetrievalConfig:
        """See RetrievalModel."""
        return self.config

    @property
    def context_dim(self) -> int:
        """See RetrievalModel."""
        return self.config.denoiser.cross_attention_dim

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one latent."""
        side = self.config.denoiser.sample_size
        return self.config.denoiser.out_channels, side, side

    @property
    def device(self) -> torch.device:
        """See RetrievalModel."""
        return next(self.denoiser.parameters()).device

    def draw(
        self,
        context: Context,
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: OnDrawStep | None = None,
    ) -> Tensor:
        """See RetrievalModel: DDIM in latents, then the first stage's decoder.

        Raises:
            UsageError: more steps than the model has timesteps.
        """
        if settings.num_steps > (most := self.config.schedule.num_timesteps):
            raise UsageError(f"{settings.num_steps} steps, but the model has {most} timesteps", fix=f"num_steps={most}")

        def report(step: Step) -> None:
            assert on_step is not None
            on_step(DrawStep(tuple(seeds), step.index, step.total, lambda: self._decoded(step.x0)))

        with autocast(self.device):
            latents = self.head.sample(
                self.denoiser,
                context,
                shape=self.latent_shape,
                seeds=seeds,
                num_steps=settings.num_steps,
                eta=settings.eta,
                guidance_scale=settings.guidance_scale,
                guidance_interval=settings.guidance_interval,
                on_step=None if on_step is None else report,
            )
        return self.first_stage.decode(latents.float())

    def _decoded(self, latents: Tensor) -> NDArray[np.uint8]:
        with torch.autocast(self.device.type, enabled=False):
            return to_uint8(self.first_stage.decode(latents.float()))


@dataclass(frozen=True)
class RetrievalAutoregressionModel(RetrievalModel):
    """RARM: a causal transformer over the codebook rows of a VQ first stage."""

    idle_settings: ClassVar[frozenset[str]] = frozenset({"num_steps", "eta", "guidance_interval"})
    config: RetrievalAutoregressionConfig
    predictor: TokenPredictor

    @classmethod
    def open(cls, directory: Path, device: torch.device | str = "cpu") -> RetrievalAutoregressionModel:
        """Open a model directory: `model.json`, and `predictor/` in transformers' layout.

        Raises:
            ModelError: the directory holds no such model, or its first stage is no longer the same.
        """
        info = _read_info(directory)
        config = _validated(RetrievalAutoregressionConfig, info, directory)
        predictor = load_token_predictor(directory / "predictor", config.predictor).to(device)
        return cls(directory, info, open_first_stage(directory, info).to(device), config, predictor)

    @property
    def objective(self) -> RetrievalConfig:
        """See RetrievalModel."""
        return self.config

    @property
    def context_dim(self) -> int:
        """See RetrievalModel."""
        return self.config.predictor.cross_attention_dim

    @property
    def device(self) -> torch.device:
        """See RetrievalModel."""
        return next(self.predictor.parameters()).device

    def draw(
        self,
        context: Context,
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: OnDrawStep | None = None,
    ) -> Tensor:
        """See RetrievalModel: token by token, then the first stage's decoder."""
        side = self.config.predictor.side

        def report(drawn: Tensor) -> None:
            assert on_step is not None
            on_step(DrawStep(tuple(seeds), drawn.shape[1], side * side, lambda: self._decoded(drawn)))

        with autocast(self.device):
            tokens, _ = autoregressive_sample(
                self.predictor.begin,
                context,
                length=side * side,
                seeds=seeds,
                guidance_scale=settings.guidance_scale,
                settings=DrawSettings(settings.temperature, settings.top_k, settings.top_p),
                on_token=None if on_step is None else report,
            )
        return self.first_stage.decode_indices(tokens.reshape(-1, side, side))

    def _decoded(self, drawn: Tensor) -> NDArray[np.uint8]:
        """Return the pictures of the tokens so far [B, n]; the rest is that of row 0."""
        side = self.config.predictor.side
        tokens = torch.nn.functional.pad(drawn, (0, side * side - drawn.shape[1]))
        with torch.autocast(self.device.type, enabled=False):
            return to_uint8(self.first_stage.decode_indices(tokens.reshape(-1, side, side)))


def open_model(directory: Path, device: torch.device | str = "cpu") -> RetrievalModel:
    """Open a model directory of either kind.

    Raises:
        ModelError: the directory holds no model, or its first stage is no longer the same.
    """
    kind = _read_info(directory).get("objective", {}).get("kind")
    if kind == "retrieval-autoregression":
        return RetrievalAutoregressionModel.open(directory, device)
    return RetrievalDiffusionModel.open(directory, device)


def _read_info(directory: Path) -> dict[str, Any]:
    path = directory / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            "there is no model here",
            where=directory,
            fix="give --model the `model` folder below what `rdm train --out` wrote",
        ) from error
    except ValueError as error:
        raise ModelError(f"model.json is damaged: {error}", where=path, fix="export the model again") from error
    if not isinstance(info, dict) or not isinstance(info.get("objective"), dict):
        raise ModelError("model.json is damaged: it names no objective", where=path, fix="export the model again")
    return info


def _validated(kind: Any, info: dict[str, Any], directory: Path) -> Any:
    try:
        return kind.model_validate(info["objective"])
    except ValueError as error:
        path = directory / INFO
        found = info["objective"].get("kind")
        expected = kind.model_fields["kind"].default
        if found is not None and found != expected:
            raise ModelError(
                f"this is a model of {found}, but one of {expected} is needed", where=path, fix="name another model"
            ) from error
        raise ModelError(f"model.json is damaged: {error}", where=path, fix="export the model again") from error
