"""Heads: a loss and a way to draw, of one network in one space.

Their mathematics is in `rdm.diffusion`; here they get one face, so that training, sampling and
held-out losses do not ask which head it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from rdm.config import Config
from rdm.context import Context
from rdm.diffusion.autoregressive import DrawSettings, autoregressive_loss, autoregressive_sample
from rdm.diffusion.editing import Start
from rdm.diffusion.gaussian_head import GaussianHead
from rdm.diffusion.guidance import Guidance
from rdm.diffusion.named_sampler import NamedSampler
from rdm.diffusion.sampler_names import SAMPLERS
from rdm.diffusion.samplers import Step
from rdm.diffusion.schedules import ScheduleConfig, TimestepConfig
from rdm.diffusion.schedules import rdm as rdm_schedule
from rdm.diffusion.thresholding import THRESHOLDINGS
from rdm.errors import UsageError
from rdm.generators.losses import Draws, Losses, LossKind
from rdm.generators.sample_settings import SampleSettings

HeadStep: TypeAlias = Callable[[int, int, Tensor], object]
"""Is told (index, total, the present guess of x_0 [B, ...]) after each step."""


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


@dataclass(frozen=True, eq=False)
class Negative:
    """What pictures are led away from.

    Attributes:
        context: one row per picture, with the ports of the pictures' own.
        scale: n of (1 - s + n) e_u + s e_c - n e_n; None: s - 1, so that it takes e_u's place.
    """

    context: Context
    scale: float | None = None


@dataclass(frozen=True, eq=False)
class Steering:
    """What leads a drawing besides its context and settings.

    Attributes:
        negative: what is led away from besides the null, or in its place.
        weaker: a network to be led away from in place of the null context.
        start: a picture to start from, or whose parts are kept.
    """

    negative: Negative | None = None
    weaker: Any = None
    start: Start | None = None


PLAIN = Steering()


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

    def check_settings(self, settings: SampleSettings, sources: Sequence[str]) -> None:
        """Refuse settings that this head cannot draw with.

        Args:
            settings: of a drawing.
            sources: that its context has.

        Raises:
            UsageError: says which, and what to do.
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
        steering: Steering = PLAIN,
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
            steering: what leads the drawing besides.
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
        steering: Steering = PLAIN,
    ) -> Tensor:
        """See Head: float32.

        Raises:
            UsageError: see `check_settings`.
        """
        self.check_settings(settings, context.sources)
        its = NamedSampler(
            settings.sampler,
            settings.num_steps,
            settings.spacing,
            settings.eta,
            settings.variance,
        )

        negative = steering.negative
        # A context to be led away from, or a weaker network, takes the place of the null.
        guidance = Guidance(
            settings.guidance_scale,
            settings.guidance_interval,
            None if negative is None else negative.context,
            None if negative is None else negative.scale,
            settings.guidance_scales,
            steering.weaker,
        )

        return self.process.sample(
            network,
            context,
            shape=shape,
            seeds=seeds,
            sampler=its,
            guidance=guidance,
            thresholding=THRESHOLDINGS[settings.thresholding],
            start=steering.start,
            on_step=None if on_step is None else _denoising(on_step),
        )

    def check_settings(self, settings: SampleSettings, sources: Sequence[str]) -> None:
        """See Head: there are as many timesteps as steps, the network has learned a variance that
        is asked for, and the sources that have a scale."""
        # Without a clean end Karras' spacing takes one timestep more, and drops the first.
        count = self.process.schedule.num_timesteps
        ends_clean = SAMPLERS[settings.sampler].ends_clean
        most = count if ends_clean or settings.spacing != "karras" else count - 1
        if settings.num_steps > most:
            raise UsageError(
                f"{settings.num_steps} steps, but the model has {count} timesteps",
                fix=f"num_steps={most}",
            )

        # What the network has not learned to do.
        if settings.variance == "learned" and not self.process.learned_variance:
            raise UsageError(
                "the model has not learned a variance", fix="variance=posterior or variance=beta"
            )
        if unknown := [name for name in settings.guidance_scales or {} if name not in sources]:
            raise UsageError(
                f"a guidance scale for {unknown[0]}, but the model reads: "
                f"{', '.join(sources) or 'none'}",
                where="guidance_scales",
                fix="name the sources that the model reads, or set guidance_scale alone",
            )


@dataclass(frozen=True)
class AutoregressiveHead:
    """Tokens one after another, each given those before it."""

    idle_settings: ClassVar[frozenset[str]] = frozenset(
        {
            "sampler",
            "num_steps",
            "spacing",
            "eta",
            "variance",
            "thresholding",
            "guidance_interval",
            "guidance_scales",
            "autoguidance",
        }
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

    def check_settings(self, settings: SampleSettings, sources: Sequence[str]) -> None:
        """See Head: settings of diffusion say nothing here, and all others go together."""

    def sample(
        self,
        network: Any,
        context: Context,
        shape: Sequence[int],
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: HeadStep | None = None,
        steering: Steering = PLAIN,
    ) -> Tensor:
        """See Head: int64.

        Raises:
            UsageError: the drawing is to be led by a weaker network, or to start from a picture.
        """
        # Refuse what only a diffusion can be led by.
        if steering.weaker is not None or steering.start is not None:
            what = "autoguidance" if steering.weaker is not None else "start from a picture"
            raise UsageError(
                f"tokens are drawn one after another: there is no {what}",
                fix="leave it out, or take a model of a diffusion recipe",
            )

        # A negative can take the null's place, and no more.
        negative = steering.negative
        if negative is not None and negative.scale is not None:
            raise UsageError(
                "a negative of tokens has no scale of its own",
                where="negative",
                fix="leave its scale out: then it takes the place of the null",
            )

        (length,) = shape
        tokens, _ = autoregressive_sample(
            network.begin,
            context,
            length=length,
            seeds=seeds,
            guidance_scale=settings.guidance_scale,
            negative=None if negative is None else negative.context,
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
