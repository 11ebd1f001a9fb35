"""RDM's objective: noise prediction on latents, conditioned on neighbors' embeddings (Blattmann et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from rdm.config import Config
from rdm.diffusion.heads import GaussianHead
from rdm.diffusion.schedules import ScheduleConfig, TimestepConfig
from rdm.diffusion.schedules import rdm as rdm_schedule
from rdm.errors import CacheError, ModelError
from rdm.models.assets import absolute_name, named_folder
from rdm.models.first_stage.first_stage import load_autoencoder, to_uint8
from rdm.models.unet import Denoiser, DenoiserConfig, build_denoiser, load_denoiser, rdm_tiny_denoiser
from rdm.training.data.latents import (
    ConditioningConfig,
    LatentData,
    neighbor_context,
    open_latents,
    provenance,
    training_context,
)
from rdm.training.model_folder import INFO, model_info, write_info
from rdm.training.objectives.objective import Objective

_LATENTS = ("moments", "latents")  # what a cache may hold for this objective
_PREVIEW_STEPS = 25


class RetrievalDiffusionConfig(Config):
    """Configuration of the objective `retrieval-diffusion`."""

    kind: Literal["retrieval-diffusion"] = "retrieval-diffusion"
    denoiser: DenoiserConfig = Field(default_factory=rdm_tiny_denoiser)
    # rdm() is the released schedule: sqrt-linear 0.0015..0.0195.
    schedule: ScheduleConfig = Field(default_factory=rdm_schedule)
    prediction_type: Literal["eps", "v", "x0"] = "eps"
    weighting: Literal["plain", "min_snr"] = "plain"
    timesteps: TimestepConfig = TimestepConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    held_out_fraction: float = Field(
        default=0.12, ge=0, lt=1, description="share of the query photographs kept for measuring"
    )
    start: Annotated[str, AfterValidator(absolute_name)] | None = Field(
        default=None,
        description="a model, assets:// or a folder, whose network training goes on from; None: random weights",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.conditioning.mean_vector != (self.denoiser.vector_dim is not None):
            raise ValueError("conditioning.mean_vector and denoiser.vector_dim belong together: set both or neither")
        return self

    def head(self) -> GaussianHead:
        """Return the decoding head of this configuration."""
        schedule = self.schedule.build()
        return GaussianHead(
            schedule,
            self.prediction_type,
            self.weighting,
            timestep_probabilities=self.timesteps.probabilities(schedule),
        )


class RetrievalDiffusionObjective(Objective):
    """E ||eps - eps_theta(z_t, t, {phi(y)})||^2 over latents z and uniform t, the neighbors entering by cross-
    attention.
    """

    def __init__(
        self, config: RetrievalDiffusionConfig, provenance: dict[str, Any], scaling: tuple[float, float]
    ) -> None:
        super().__init__()
        self.config = config
        self.provenance = provenance
        self.latent_shift, self.latent_scale = scaling
        self.head = config.head()
        self.denoiser: Denoiser = build_denoiser(config.denoiser)

    @property
    def networks(self) -> Sequence[Any]:
        """See Objective."""
        return (self.denoiser.unet,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the schedule along with the weights: from another device, every step would wait for its numbers.

        It is no buffer, because a cast of the weights must leave it in float64.
        """
        moved = super()._apply(fn, recurse)
        self.head = self.head.to(next(self.parameters()).device)
        return moved

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See Objective. The posterior is sampled anew at every step."""
        z = (self._latents(batch, generator) - self.latent_shift) * self.latent_scale
        context = training_context(batch["neighbors"], self.config.conditioning, generator)
        timesteps, noise = self.head.draw(z, generator)
        losses = self.head.loss_at(self.denoiser, z, timesteps, noise, context)
        return {"loss": losses.mean(), "timesteps": timesteps, "losses": losses}

    @torch.no_grad()
    def preview(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """See Objective: samples whose neighbors are those of the training samples, with a seed for each."""
        first_stage = load_autoencoder(str(self.provenance["autoencoder"]))
        context = neighbor_context(batch["neighbors"], self.config.conditioning)
        latents = self.head.sample(
            self._denoiser_with(state).eval().to(batch["neighbors"].device),
            context,
            shape=(first_stage.latent_channels, *next(batch[name] for name in _LATENTS if name in batch).shape[2:]),
            seeds=range(len(batch["neighbors"])),
            num_steps=min(_PREVIEW_STEPS, self.config.schedule.num_timesteps),
        )
        return to_uint8(first_stage.decode(latents.float().cpu()))

    def start_from_model(self, directory: str) -> None:
        """Take the weights of a model's network: `assets://NAME` or a model folder.

        Raises:
            ModelError: it holds none, or one of other sizes.
        """
        weights = load_denoiser(named_folder(directory, INFO, "model") / "denoiser").state_dict()
        shapes = {name: value.shape for name, value in self.denoiser.state_dict().items()}
        if {name: value.shape for name, value in weights.items()} != shapes:
            raise ModelError(
                "this model has another network than the one to be trained",
                where=directory,
                fix="set objective.denoiser to its sizes, or leave objective.start out",
            )
        self.denoiser.load_state_dict(weights)

    def _denoiser_with(self, state: Mapping[str, Tensor]) -> Denoiser:
        denoiser = build_denoiser(self.config.denoiser)
        denoiser.load_state_dict({name.removeprefix("denoiser."): value for name, value in state.items()})
        return denoiser

    def _latents(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return a draw from each posterior of a KL autoencoder, or the latents of a VQ autoencoder."""
        if "latents" in batch:
            return batch["latents"].float()
        mean, logvar = batch["moments"].float().chunk(2, dim=1)
        return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator, device=mean.device)

    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """See Objective: `denoiser/` opens with diffusers' `from_pretrained`; `model.json` holds the rest."""
        exported = self._denoiser_with(state).unet
        exported.save_pretrained(str(directory / "denoiser"), safe_serialization=True)
        write_info(directory, model_info(self.config, self.provenance))


def open_training(
    cache: str, database: str, config: RetrievalDiffusionConfig
) -> tuple[LatentData, RetrievalDiffusionObjective]:
    """Return the training data and the objective of a cache and a database.

    Raises:
        CacheError: the cache belongs to another first stage, another query set, or to latents of another shape.
    """
    data, first_stage = open_latents(cache, database, config, config.denoiser.cross_attention_dim)
    if data.cache.content == "indices":
        raise CacheError(
            "the cache holds codebook indices, diffusion needs latents",
            where=cache,
            fix="rdm cache build --set content=latents, into a new folder",
        )
    if first_stage.latent_channels != config.denoiser.in_channels:
        raise CacheError(
            f"the latents have {first_stage.latent_channels} channels, the denoiser takes "
            f"{config.denoiser.in_channels}",
            where=cache,
            fix="set objective.denoiser.in_channels",
        )
    side = data.cache.config.resolution // first_stage.factor
    if side != config.denoiser.sample_size:
        raise CacheError(
            f"the latents are {side}x{side}, the denoiser draws {config.denoiser.sample_size} by "
            f"{config.denoiser.sample_size}",
            where=cache,
            fix=f"--set objective.denoiser.sample_size={side}, or a cache of --set "
            f"resolution={config.denoiser.sample_size * first_stage.factor}",
        )
    objective = RetrievalDiffusionObjective(config, provenance(data), (first_stage.shift, first_stage.scale))
    if config.start is not None:
        objective.start_from_model(config.start)
    return data, objective
