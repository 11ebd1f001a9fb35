"""The Gaussian head: schedule, prediction type and samplers, composed as recipes use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rdm.context import Context
from rdm.diffusion.editing import Start
from rdm.diffusion.gaussian import (
    PredictionType,
    Predictor,
    Weighting,
    diffusion_loss,
    draw_noise,
    loss_at,
)
from rdm.diffusion.guidance import Guidance
from rdm.diffusion.named_sampler import NamedSampler
from rdm.diffusion.samplers import Denoiser, OnStep, ddim_invert, seeded_noise
from rdm.diffusion.schedules import NoiseSchedule, Spacing, ddim_timesteps, linspace_timesteps, rdm
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
        learned_variance: the network returns a variance too, see `Denoiser`.
    """

    schedule: NoiseSchedule = field(default_factory=lambda: rdm().build())
    prediction_type: PredictionType = "eps"
    weighting: Weighting = "plain"
    spacing: Spacing = "leading"
    timestep_probabilities: Tensor | None = None
    learned_variance: bool = False

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
        return Denoiser(
            predict,
            self.schedule,
            context,
            self.prediction_type,
            thresholding,
            self.learned_variance,
        )

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

    def sample(  # noqa: PLR0913 - what may lead a drawing, each with a default
        self,
        predict: Predictor,
        context: Context,
        *,
        shape: Sequence[int],
        seeds: Sequence[int],
        sampler: NamedSampler | None = None,
        guidance: Guidance | None = None,
        thresholding: Thresholding | None = None,
        start: Start | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return samples float32 [len(seeds), *shape], on the context's device.

        An empty context has none: then it is the schedule's.

        Args:
            predict: the network.
            context: conditioning of len(seeds) samples.
            shape: of one sample, without the batch.
            seeds: one per sample; a sample depends on its own seed only.
            sampler: which, and its settings; None: as RDM samples, DDIM with 100 steps and eta = 1.
            guidance: how the network is led; None: not at all.
            thresholding: bounds the predicted x_0.
            start: a picture to start from, or known parts to keep; None: from noise.
            on_step: is called after each step.

        Raises:
            ValueError: the context's batch is not len(seeds), or a number is out of range.
        """
        # The initial noise is a function of the seeds alone, for every sampler.
        noise = self._initial_noise(context, shape, seeds)
        leading = predict if guidance is None else guidance.of(predict, self.schedule)
        denoise = self.denoiser(leading, context, thresholding)

        sampler = sampler or NamedSampler()
        timesteps = sampler.timesteps(self.schedule, self.spacing)

        if start is None:
            return sampler.run(denoise, noise, timesteps, seeds=seeds, on_step=on_step)

        # A start of no strength leaves no step to take.
        begun = start.at(self.schedule, timesteps, noise)
        if not len(begun.timesteps):
            return begun.x_t

        # Parts that are kept stay as the picture has them, exactly.
        samples = sampler.run(
            denoise,
            begun.x_t,
            begun.timesteps,
            seeds=seeds,
            on_step=on_step,
            project=begun.known,
        )
        return samples if begun.known is None else begun.known.finished(samples)

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
