"""Heads: a loss and a way to draw, of one network in one space.

Their mathematics is in `rdm.diffusion`; here they get one face, so that training, sampling and
held-out losses do not ask which head it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from rdm.config import Config
from rdm.context import Context
from rdm.diffusion.autoregressive import DrawSettings, autoregressive_loss, autoregressive_sample
from rdm.diffusion.gaussian_head import GaussianHead
from rdm.diffusion.samplers import Step
from rdm.diffusion.schedules import ScheduleConfig, TimestepConfig
from rdm.diffusion.schedules import rdm as rdm_schedule
from rdm.errors import UsageError
from rdm.generators.sample_settings import SampleSettings

LossKind = Literal["eps", "v", "x0", "tokens"]
"""Squared error of what the network predicts, or nats per token."""

HeadStep: TypeAlias = Callable[[int, int, Tensor], object]
"""Is told (index, total, the present guess of x_0 [B, ...]) after each step."""

Draws: TypeAlias = Iterator[Callable[[slice, Context], Tensor]]
"""For each draw, a function from rows and their context to each row's loss, float32 [B]."""


class GaussianConfig(Config):
    """Gaussian diffusion."""

    kind: Literal["gaussian"] = "gaussian"
    # rdm() is the released schedule: sqrt-linear 0.0015..0.0195.
    schedule: ScheduleConfig = Field(default_factory=rdm_schedule)
    prediction_type: Literal["eps", "v", "x0"] = "eps"
    weighting: Literal["plain", "min_snr"] = "plain"
    timesteps: TimestepConfig = TimestepConfig()

    @property
    def loss_kind(self) -> LossKind:
        """What the loss measures."""
        return self.prediction_type


class AutoregressiveConfig(Config):
    """Tokens one after another."""

    kind: Literal["autoregressive"] = "autoregressive"

    @property
    def loss_kind(self) -> LossKind:
        """What the loss measures."""
        return "tokens"


AnyHeadConfig: TypeAlias = GaussianConfig | AutoregressiveConfig
HeadConfig = Annotated[AnyHeadConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        values: float32 [B].
        timesteps: int64 [B], where the head drew some.
    """

    values: Tensor
    timesteps: Tensor | None = None


class Head(Protocol):
    """A loss and a way to draw."""

    idle_settings: ClassVar[frozenset[str]]
    """Settings that say nothing to this kind of head."""

    deterministic_loss: ClassVar[bool]
    """Whether the loss of a sample in a context draws nothing."""

    def to(self, device: torch.device | str) -> Head:
        """Return the head with its tensors on another device."""
        ...

    def loss(
        self, network: Any, x0: Tensor, context: Context, generator: torch.Generator
    ) -> Losses:
        """Return the training loss of samples x0 [B, ...].

        Args:
            network: predicts.
            x0: clean samples.
            context: one row per sample.
            generator: draws noise and times.
        """
        ...

    def draws(self, network: Any, x0: Tensor, num_draws: int, seed: int) -> Draws:
        """Yield functions that measure rows of x0 [N, ...] in any context, each with its own draw
        of what is random.

        Args:
            network: predicts.
            x0: clean samples.
            num_draws: how many functions to yield.
            seed: of what is random.
        """
        ...

    def sample(
        self,
        network: Any,
        context: Context,
        shape: Sequence[int],
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: HeadStep | None = None,
    ) -> Tensor:
        """Return samples [len(seeds), *shape]; a sample depends on its own seed and context
        only.

        Args:
            network: predicts.
            context: one row per sample.
            shape: of one sample.
            seeds: of the samples.
            settings: steps, guidance, thresholding.
            on_step: called after each step.
        """
        ...


@dataclass(frozen=True)
class DiffusionHead:
    """Gaussian diffusion with one of its samplers."""

    process: GaussianHead
    idle_settings: ClassVar[frozenset[str]] = frozenset({"temperature", "top_k", "top_p"})
    deterministic_loss: ClassVar[bool] = False

    def to(self, device: torch.device | str) -> DiffusionHead:
        """See Head. The schedule stays float64."""
        return replace(self, process=self.process.to(device))

    def loss(
        self, network: Any, x0: Tensor, context: Context, generator: torch.Generator
    ) -> Losses:
        """See Head: at timesteps and with noise drawn in this order."""
        timesteps, noise = self.process.draw(x0, generator)
        return Losses(self.process.loss_at(network, x0, timesteps, noise, context), timesteps)

    def draws(self, network: Any, x0: Tensor, num_draws: int, seed: int) -> Draws:
        """See Head: of noise and time; times are stratified: draw d of D lies in the d-th of D
        equal parts of 1..T."""
        generator = torch.Generator().manual_seed(seed)
        steps = self.process.schedule.num_timesteps
        device = self.process.schedule.betas.device
        for draw in range(num_draws):
            noise = torch.randn(x0.shape, generator=generator)
            # Loss varies with time far more than with noise: strata take that out of the mean.
            part = (draw + torch.rand(len(x0), generator=generator)) / num_draws
            t = (part * steps).long().clamp(max=steps - 1)

            # Bound as defaults: a closure over the loop's names would see a later draw's.
            def losses_of(
                rows: slice, context: Context, noise: Tensor = noise, t: Tensor = t
            ) -> Tensor:
                values, times, drawn = (tensor[rows].to(device) for tensor in (x0, t, noise))
                return self.process.loss_at(network, values, times, drawn, context)

            yield losses_of

    def sample(
        self,
        network: Any,
        context: Context,
        shape: Sequence[int],
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: HeadStep | None = None,
    ) -> Tensor:
        """See Head: float32.

        Raises:
            UsageError: more steps than there are timesteps, or fewer than the sampler takes.
        """
        most = self.process.schedule.num_timesteps
        if settings.num_steps > most:
            raise UsageError(
                f"{settings.num_steps} steps, but the model has {most} timesteps",
                fix=f"num_steps={most}",
            )

        told = None if on_step is None else _denoising(on_step)
        if settings.sampler == "ddim":
            return self.process.sample(
                network,
                context,
                shape=shape,
                seeds=seeds,
                num_steps=settings.num_steps,
                eta=settings.eta,
                guidance_scale=settings.guidance_scale,
                guidance_interval=settings.guidance_interval,
                on_step=told,
            )

        # What ancestral sampling cannot do is refused, not left out.
        if settings.num_steps < 2:
            raise UsageError(
                "ancestral sampling takes at least two steps", fix="num_steps=2 or more"
            )
        if settings.guidance_interval is not None:
            raise UsageError(
                "a guidance interval is for DDIM", fix="sampler=ddim, or no guidance_interval"
            )

        return self.process.sample_ancestral(
            network,
            context,
            shape=shape,
            seeds=seeds,
            num_steps=settings.num_steps,
            variance=settings.variance,
            guidance_scale=settings.guidance_scale,
            on_step=told,
        )


@dataclass(frozen=True)
class AutoregressiveHead:
    """Tokens one after another, each given those before it."""

    idle_settings: ClassVar[frozenset[str]] = frozenset(
        {"sampler", "num_steps", "eta", "variance", "guidance_interval"}
    )
    deterministic_loss: ClassVar[bool] = True

    def to(self, device: torch.device | str) -> AutoregressiveHead:
        """See Head: there are no tensors."""
        return self

    def loss(
        self, network: Any, x0: Tensor, context: Context, generator: torch.Generator
    ) -> Losses:
        """See Head: nats per token."""
        return Losses(autoregressive_loss(network, x0, context))

    def draws(self, network: Any, x0: Tensor, num_draws: int, seed: int) -> Draws:
        """See Head: the loss itself, nothing in it is drawn."""
        device = next(network.parameters()).device
        for _ in range(num_draws):
            yield lambda rows, context: autoregressive_loss(network, x0[rows].to(device), context)

    def sample(
        self,
        network: Any,
        context: Context,
        shape: Sequence[int],
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: HeadStep | None = None,
    ) -> Tensor:
        """See Head: int64."""
        (length,) = shape
        tokens, _ = autoregressive_sample(
            network.begin,
            context,
            length=length,
            seeds=seeds,
            guidance_scale=settings.guidance_scale,
            settings=DrawSettings(settings.temperature, settings.top_k, settings.top_p),
            on_token=None
            if on_step is None
            else lambda drawn: on_step(drawn.shape[1], length, drawn),
        )
        return tokens


def build_head(config: AnyHeadConfig) -> Head:
    """Return the head of a configuration."""
    if isinstance(config, AutoregressiveConfig):
        return AutoregressiveHead()
    schedule = config.schedule.build()
    process = GaussianHead(
        schedule,
        config.prediction_type,
        config.weighting,
        timestep_probabilities=config.timesteps.probabilities(schedule),
    )
    return DiffusionHead(process)


def _denoising(on_step: HeadStep) -> Callable[[Step], None]:
    def report(step: Step) -> None:
        on_step(step.index, step.total, step.x0)

    return report
