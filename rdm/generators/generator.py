"""One generator for every system: a network, its space, its conditions and a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from rdm.config import Config
from rdm.context import Context, Part
from rdm.diffusion.named_sampler import NamedSampler
from rdm.diffusion.sampler_names import SAMPLERS
from rdm.diffusion.samplers import ddim_invert, seeded_noise
from rdm.encoders.text_states import TEXT_DIMS
from rdm.errors import UsageError
from rdm.generators.conditions import Condition, Conditions, Known, NeighborsConfig, assemble
from rdm.generators.heads import (
    PLAIN,
    AutoregressiveConfig,
    DiffusionHead,
    GaussianConfig,
    HeadConfig,
    Steering,
    build_head,
)
from rdm.generators.losses import Draws, Losses
from rdm.generators.sample_settings import DrawStep, OnDrawStep, SampleSettings, Setting
from rdm.generators.spaces import LatentsConfig, Space, SpaceConfig
from rdm.models.first_stage.first_stage import to_uint8
from rdm.models.networks import Network, NetworkConfig, build_network
from rdm.models.precision import Precision, autocast
from rdm.models.unet import rdm_tiny_denoiser


class GeneratorConfig(Config):
    """What a system is."""

    network: NetworkConfig = Field(default_factory=rdm_tiny_denoiser)
    space: SpaceConfig = LatentsConfig()
    conditions: Conditions = Conditions(neighbors=NeighborsConfig())
    head: HeadConfig = Field(default_factory=GaussianConfig)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sequences = self.network.kind == "token-predictor"
        if sequences != (self.space.kind == "tokens") or sequences != isinstance(
            self.head, AutoregressiveConfig
        ):
            raise ValueError(
                f"a {self.network.kind}, a space of {self.space.kind} and a head that is "
                f"{self.head.kind} do not "
                "belong together"
            )

        # What the network reads is what the conditions give.
        reads_tokens = self.network.cross_attention_dim is not None
        by_tokens = tuple(name for name in self.conditions.sources if name != "label")
        if reads_tokens != bool(by_tokens):
            raise ValueError(
                f"the {self.network.kind} reads "
                f"{'tokens' if reads_tokens else 'no tokens'}, but those of the conditions are: "
                f"{', '.join(by_tokens) or 'none'}"
            )

        text, dim = self.conditions.text, self.network.cross_attention_dim
        if text is not None and dim != TEXT_DIMS[text.encoder]:
            raise ValueError(
                f"states of {text.encoder} have {TEXT_DIMS[text.encoder]} dimensions, the "
                f"{self.network.kind} reads {dim}: set network.cross_attention_dim"
            )

        # Parts that share the vector are joined, so its length is their sum.
        neighbors, label = self.conditions.neighbors, self.conditions.label
        mean = dim if neighbors is not None and neighbors.mean_vector else None
        given = (mean or 0) + (label.num_classes if label is not None else 0)
        if given != (self.network.vector_dim or 0):
            raise ValueError(
                f"the conditions give a vector of {given} numbers, the {self.network.kind} reads "
                f"{self.network.vector_dim or 'none'}: set network.vector_dim (of an "
                "unconditional-unet num_classes), or leave conditions.neighbors.mean_vector and "
                "conditions.label out"
            )
        return self

    def zero_context(self, batch_size: int) -> Context:
        """Return a context of zeros with the ports of training, on torch's default device."""
        dim, neighbors = self.network.cross_attention_dim or 0, self.conditions.neighbors
        parts: list[Part] = []
        if neighbors is not None:
            parts.append(
                Part("neighbors", "tokens", torch.zeros(batch_size, neighbors.k_train, dim))
            )
            if neighbors.mean_vector:
                parts.append(Part("neighbors", "vector", torch.zeros(batch_size, dim)))

        if (text := self.conditions.text) is not None:
            present = torch.ones(batch_size, text.length, dtype=torch.bool)
            parts.append(Part("text", "tokens", torch.zeros(batch_size, text.length, dim), present))

        if (label := self.conditions.label) is not None:
            parts.append(Part("label", "vector", torch.zeros(batch_size, label.num_classes)))
        return Context(*parts)


class Generator(nn.Module):
    """A system: its loss and its pictures.

    Attributes:
        network: the only part with weights.
        space: what it works on.
        conditions: readers of its sources.
        head: loss and drawing.
        precision: that pictures are drawn in; `auto`: the faster one of the device.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        space: Space,
        conditions: Sequence[Condition],
        network: Network | None = None,
    ) -> None:
        """Put a system together.

        Args:
            config: what it is.
            space: of the configuration, with its first stage.
            conditions: readers of the configuration's sources, in their order.
            network: of the configuration's sizes; None: one with fresh weights.
        """
        super().__init__()
        self.config = config
        self.space = space
        self.conditions = tuple(conditions)
        self.head = build_head(config.head)
        self.network: Network = build_network(config.network) if network is None else network
        self.precision: Precision = "auto"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the schedule with the weights: each step would wait for it on another device.

        It is no buffer, because a cast of the weights must leave it in float64.
        """
        moved = super()._apply(fn, recurse)
        self.head = self.head.to(next(self.network.parameters()).device)
        return moved

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.network.parameters()).device

    @contextmanager
    def computing_in(self, precision: Precision) -> Iterator[None]:
        """Draw in a precision for a while."""
        before, self.precision = self.precision, precision
        try:
            yield
        finally:
            self.precision = before

    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Losses:
        """Return the loss of each sample of a batch. The sample is drawn first, then its context,
        then the noise."""
        x0 = self.space.to_model(batch, generator)
        context = assemble(self.conditions, batch, self.config.conditions.dropout, generator)
        return self.head.loss(self.network, x0, context, generator)

    def context_of(self, batch: Mapping[str, Tensor]) -> Context:
        """Return the context of samples with nothing drawn or dropped."""
        return assemble(self.conditions, batch, self.config.conditions.dropout, None)

    def draws(self, batch: Mapping[str, Tensor], num_draws: int, seed: int) -> Draws:
        """Yield functions that measure the loss of rows of samples in any context, see
        `Head.draws`."""
        return self.head.draws(self.network, self.space.to_model(batch, None), num_draws, seed)

    def context(self, known: Sequence[Known]) -> Context:
        """Return the context of pictures that are to be drawn."""
        return Context(
            *(part for one in self.conditions for part in one.of_known(known, self.device))
        )

    @torch.no_grad()
    def sample(
        self,
        context: Context,
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: OnDrawStep | None = None,
        steering: Steering = PLAIN,
    ) -> Tensor:
        """Return pictures float32 [B, 3, H, W] in [-1, 1], one per seed and row of the context.

        Args:
            context: one row per picture.
            seeds: of the pictures, B.
            settings: of the head and of guidance.
            on_step: called after each step of a batch; what it raises ends the drawing.
            steering: what leads the drawing besides.

        Raises:
            UsageError: the head cannot draw with these settings, or with a negative.
        """
        return self.space.to_pictures(
            self.sample_space(context, seeds, settings, on_step, steering)
        )

    @torch.no_grad()
    def sample_space(
        self,
        context: Context,
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: OnDrawStep | None = None,
        steering: Steering = PLAIN,
    ) -> Tensor:
        """Return samples [B, ...] in the space, as latents or tokens; otherwise as `sample`."""
        self.check_settings(settings)

        # A preview is decoded only when it is asked for.
        def report(index: int, total: int, x0: Tensor) -> None:
            assert on_step is not None
            on_step(DrawStep(tuple(seeds), index, total, lambda: self.preview(x0), x0))

        with autocast(self.device, self.precision):
            return self.head.sample(
                self.network,
                context,
                self.config.network.sample_shape,
                seeds,
                self.effective(settings),
                None if on_step is None else report,
                steering,
            )

    @torch.no_grad()
    def inverted(self, context: Context, x0: Tensor, settings: SampleSettings) -> Tensor:
        """Return the noise, float32, from which DDIM with eta = 0 and these settings nearly draws
        x0 [B, ...].

        Raises:
            UsageError: the head is no diffusion.
        """
        self.check_settings(settings)
        if not isinstance(self.head, DiffusionHead):
            raise UsageError(
                "only diffusion can be inverted", fix="ask a model with a Gaussian head"
            )
        process = self.head.process
        its = NamedSampler("ddim", settings.num_steps, settings.spacing)
        timesteps = its.timesteps(process.schedule, process.spacing)
        with autocast(self.device):
            return ddim_invert(process.denoiser(self.network, context), x0, timesteps)

    @torch.no_grad()
    def expected(self, context: Context, seed: int) -> Tensor:
        """Return what the network expects of a picture from its context alone: the x_0 that it
        predicts of pure noise, float32 [B, C, H, W]; the noise is the same for the whole batch.

        Raises:
            UsageError: the head is no diffusion.
        """
        head = self.head
        if not isinstance(head, DiffusionHead):
            raise UsageError(
                "only diffusion has an expected picture", fix="ask a model with a Gaussian head"
            )
        count = context.batch_size or 1
        noise = seeded_noise([seed], self.config.network.sample_shape).to(self.device)
        # The same noise for all, so that pictures differ by their contexts alone.
        x_t = noise.expand(count, *noise.shape[1:])
        denoise = head.process.denoiser(self.network, context)
        return denoise(x_t, head.process.schedule.num_timesteps - 1)[1].float()

    @torch.no_grad()
    def grid(
        self, context: Context, seeds: Sequence[int], settings: SampleSettings
    ) -> NDArray[np.uint8]:
        """Return pictures uint8 [B, H, W, 3] to watch a training, decoded on the CPU."""
        x0 = self.head.sample(
            self.network, context, self.config.network.sample_shape, seeds, settings
        )
        return to_uint8(self.space.to_pictures(x0.cpu()))

    def preview(self, x0: Tensor) -> NDArray[np.uint8]:
        """Return pictures uint8 [B, H, W, 3] of samples in the space."""
        with torch.autocast(self.device.type, enabled=False):
            return to_uint8(self.space.to_pictures(x0))

    def check_settings(self, settings: SampleSettings) -> None:
        """Refuse settings that the system cannot draw with.

        Raises:
            UsageError: thresholding, and the data have no known range; or what its head refuses.
        """
        self.head.check_settings(self.effective(settings), self.config.conditions.sources)
        kind = self.config.space.kind
        if settings.thresholding != "none" and kind == "latents":
            raise UsageError(
                f"{settings.thresholding} thresholding is for pixels in [-1, 1]; latents have "
                "no known range",
                fix="thresholding=none, or a lower guidance_scale",
            )

    def effective(self, settings: SampleSettings) -> SampleSettings:
        """Return the settings as they act: without anything to be led away from there is no
        guidance, and what the sampler decides by itself is filled in."""
        filled = settings.filled()
        if filled.autoguidance is not None:
            return filled
        # With nothing to drop both branches are equal, and guidance would cost double.
        reads = bool(self.config.conditions.read)
        scale = filled.guidance_scale if reads else 1.0
        scales = filled.guidance_scales if reads else None
        interval = None if scale == 1 and not scales else filled.guidance_interval
        return filled.model_copy(
            update={
                "guidance_scale": scale,
                "guidance_scales": scales,
                "guidance_interval": interval,
            }
        )

    def acting(self, settings: SampleSettings) -> dict[str, Setting]:
        """Return the settings that act on this system: a RARM takes no denoising steps."""
        idle = set(self.head.idle_settings)
        if "neighbors" not in self.config.conditions.read:
            idle.add("k")
        idle |= {"eta", "variance"} - SAMPLERS[settings.sampler].takes
        effective = self.effective(settings)
        # These came later: a folder that was begun without them is still of the same request.
        idle |= {
            name
            for name in ("spacing", "thresholding", "guidance_scales", "autoguidance")
            if getattr(effective, name) == SampleSettings.model_fields[name].default
        }
        return effective.model_dump(mode="json", exclude=idle)
