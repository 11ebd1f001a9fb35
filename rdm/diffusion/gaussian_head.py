"""The Gaussian head: schedule, prediction type and samplers, composed as recipes use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rdm.context import Context
from rdm.diffusion.gaussian import (
    PredictionType,
    Predictor,
    Weighting,
    diffusion_loss,
    draw_noise,
    loss_at,
)
from rdm.diffusion.guidance import guided, guided_in_interval
from rdm.diffusion.samplers import (
    AncestralVariance,
    Denoiser,
    OnStep,
    ddim_invert,
    ddim_sample,
    ddpm_sample,
    seeded_noise,
)
from rdm.diffusion.schedules import (
    NoiseSchedule,
    Spacing,
    ancestral_timesteps,
    ddim_timesteps,
    linspace_timesteps,
    rdm,
)
from rdm.diffusion.thresholding import Thresholding


@dataclass(frozen=True, eq=False)
class GaussianHead:
    """A Gaussian diffusion process without its network.

    Attributes:
        schedule: noise levels; the released RDM's by default.
        prediction_type: the kind of the network's predictions.
        weighting: of the training loss, see `loss_weights`.
        spacing: of DDIM's timesteps: `leading` is latent diffusion's rule, `linspace` starts at the
            noisiest level.
        timestep_probabilities: float64 [T], of the timesteps that training draws; None: uniform.
    """

    schedule: NoiseSchedule = field(default_factory=lambda: rdm().build())
    prediction_type: PredictionType = "eps"
    weighting: Weighting = "plain"
    spacing: Spacing = "leading"
    timestep_probabilities: Tensor | None = None

    def to(self, device: torch.device | str) -> GaussianHead:
        """Return the head with its schedule on another device."""
        return replace(self, schedule=self.schedule.to(device))

    def timesteps(self, num_steps: int) -> Tensor:
        """Return the timesteps that DDIM visits, int64, rising."""
        rule = ddim_timesteps if self.spacing == "leading" else linspace_timesteps
        return rule(self.schedule.num_timesteps, num_steps)

    def denoiser(
        self, predict: Predictor, context: Context, thresholding: Thresholding | None = None
    ) -> Denoiser:
        """Return the network with this head's schedule and prediction type, for `samplers`."""
        return Denoiser(predict, self.schedule, context, self.prediction_type, thresholding)

    def loss(
        self, predict: Predictor, x0: Tensor, context: Context, generator: torch.Generator
    ) -> Tensor:
        """Return each sample's training loss, float32 [B]; see `diffusion_loss`."""
        return diffusion_loss(
            predict, x0, context, self.schedule, generator, self.prediction_type, self.weighting
        )

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the timesteps and the noise of a training step; see `draw_noise`."""
        return draw_noise(x0, self.schedule, generator, self.timestep_probabilities)

    def loss_at(
        self, predict: Predictor, x0: Tensor, t: Tensor, noise: Tensor, context: Context
    ) -> Tensor:
        """Return each sample's loss float32 [B] at given timesteps and noise.

        The same draw under several contexts compares these.
        """
        return loss_at(
            predict, x0, t, noise, context, self.schedule, self.prediction_type, self.weighting
        )

    def sample(  # noqa: PLR0913 - a sampler's settings, each with a default
        self,
        predict: Predictor,
        context: Context,
        *,
        shape: Sequence[int],
        seeds: Sequence[int],
        num_steps: int = 100,
        eta: float = 1.0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        thresholding: Thresholding | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return samples float32 [len(seeds), *shape] by DDIM, on the context's device.

        An empty context has none: then it is the schedule's.

        Args:
            predict: the network. For a negative context pass `guided(predict, s, negative)` and
                guidance_scale 1.
            context: conditioning of len(seeds) samples.
            shape: of one sample, without the batch.
            seeds: one per sample; a sample depends on its own seed only.
            num_steps: number of network evaluations per branch, see `ddim_timesteps`. RDM samples
                with 100 and eta = 1.
            eta: in [0, 1]; 0 is deterministic given the initial noise.
            guidance_scale: s of e_u + s (e_c - e_u); 1 is no guidance.
            guidance_interval: log-SNRs between which guidance acts; None: everywhere.
            thresholding: bounds the predicted x_0.
            on_step: is called after each step.

        Raises:
            ValueError: the context's batch is not len(seeds), or a number is out of range.
        """
        noise = self._initial_noise(context, shape, seeds)
        guiding = guided(predict, guidance_scale)
        # At scale 1 there is nothing to switch off; a comparison per step is saved.
        if guidance_interval is not None and guidance_scale != 1:
            guiding = guided_in_interval(predict, guiding, self.schedule, guidance_interval)
        denoise = self.denoiser(guiding, context, thresholding)
        return ddim_sample(
            denoise, noise, self.timesteps(num_steps), eta=eta, seeds=seeds, on_step=on_step
        )

    def sample_ancestral(  # noqa: PLR0913 - as `sample`
        self,
        predict: Predictor,
        context: Context,
        *,
        shape: Sequence[int],
        seeds: Sequence[int],
        num_steps: int | None = None,
        variance: AncestralVariance = "posterior",
        guidance_scale: float = 1.0,
        thresholding: Thresholding | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return samples float32 [len(seeds), *shape] by ancestral sampling, by default in T steps.

        Arguments are those of `sample`, and `variance`: see `ddpm_step`.
        """
        # The initial noise is a function of the seeds alone, for every sampler.
        noise = self._initial_noise(context, shape, seeds)
        denoise = self.denoiser(guided(predict, guidance_scale), context, thresholding)
        timesteps = ancestral_timesteps(
            self.schedule.num_timesteps, num_steps or self.schedule.num_timesteps
        )
        return ddpm_sample(
            denoise, noise, timesteps, seeds=seeds, variance=variance, on_step=on_step
        )

    def invert(
        self, predict: Predictor, x0: Tensor, context: Context, *, num_steps: int = 100
    ) -> Tensor:
        """Return latents [B, ...] from which DDIM with eta = 0 nearly gives x0 [B, ...] back.

        See `ddim_invert`.
        """
        return ddim_invert(self.denoiser(predict, context), x0, self.timesteps(num_steps))

    def _initial_noise(
        self, context: Context, shape: Sequence[int], seeds: Sequence[int]
    ) -> Tensor:
        if context.batch_size not in (None, len(seeds)):
            raise ValueError(
                f"the context holds {context.batch_size} samples, but there are {len(seeds)} seeds"
            )
        device = self.schedule.betas.device if context.device is None else context.device
        return seeded_noise(seeds, shape, device=device)
