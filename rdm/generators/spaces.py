"""Spaces: what a head works on, made of what a cache holds, and how it becomes a picture.

A space reads the batch's column that a latent cache's content names, so training and held-out
losses share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from rdm.config import Config
from rdm.models.first_stage.first_stage import FirstStage, to_signed


class PixelsConfig(Config):
    """The pictures themselves, in [-1, 1]."""

    kind: Literal["pixels"] = "pixels"


class LatentsConfig(Config):
    """Scaled latents of a KL first stage, or of a VQ one before its codebook."""

    kind: Literal["latents"] = "latents"


class TokensConfig(Config):
    """Rows of a VQ first stage's codebook."""

    kind: Literal["tokens"] = "tokens"


SpaceConfig = Annotated[PixelsConfig | LatentsConfig | TokensConfig, Field(discriminator="kind")]


class Space(Protocol):
    """What a head works on."""

    contents: ClassVar[tuple[str, ...]]
    """What a cache may hold for it: names of batch columns."""

    def to_model(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
        """Return what the head learns [B, ...] of a batch; without a generator nothing is drawn."""
        ...

    def to_pictures(self, x0: Tensor) -> Tensor:
        """Return pictures float32 [B, 3, H, W] in [-1, 1]."""
        ...

    def of_pictures(self, images: Tensor) -> Tensor:
        """Return what the head works on of pictures uint8 [B, 3, H, W]; nothing is drawn."""
        ...

    def shape(self, resolution: int) -> tuple[int, ...]:
        """Return the shape of one sample of pictures of so many pixels a side."""
        ...


@dataclass(frozen=True)
class PixelSpace:
    """Pictures uint8 [B, 3, H, W], as numbers in [-1, 1]."""

    contents: ClassVar[tuple[str, ...]] = ("pixels",)

    def to_model(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
        """See Space: float32 [B, 3, H, W]."""
        return to_signed(batch["pixels"])

    def to_pictures(self, x0: Tensor) -> Tensor:
        """See Space."""
        return x0.float().clamp(-1, 1)

    def of_pictures(self, images: Tensor) -> Tensor:
        """See Space: float32 [B, 3, H, W]."""
        return to_signed(images)

    def shape(self, resolution: int) -> tuple[int, ...]:
        """See Space."""
        return 3, resolution, resolution


@dataclass(frozen=True)
class LatentSpace:
    """Latents of about unit variance: `(latent - shift) * scale`.

    Attributes:
        first_stage: decodes.
        shift: of the latents; that of the first stage as a rule.
        scale: likewise.
    """

    first_stage: FirstStage
    shift: float
    scale: float
    contents: ClassVar[tuple[str, ...]] = ("moments", "latents")

    @classmethod
    def of(cls, first_stage: FirstStage) -> LatentSpace:
        """Return the space of a first stage's own scaling."""
        return cls(first_stage, first_stage.shift, first_stage.scale)

    def to_model(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
        """See Space: a draw of a KL first stage's posterior, or without a generator its mean."""
        return (self._latents(batch, generator) - self.shift) * self.scale

    def _latents(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
        if "latents" in batch:
            return batch["latents"].float()
        mean, logvar = batch["moments"].float().chunk(2, dim=1)
        if generator is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + torch.exp(0.5 * logvar) * noise

    def to_pictures(self, x0: Tensor) -> Tensor:
        """See Space."""
        return self.first_stage.decode(x0.float())

    def of_pictures(self, images: Tensor) -> Tensor:
        """See Space: float32 [B, C, H/f, W/f], the mean of a KL first stage's posterior."""
        own = self.first_stage
        # The first stage scales by its own numbers; a space may have others.
        raw = own.encode(images) / own.scale + own.shift
        return (raw - self.shift) * self.scale

    def shape(self, resolution: int) -> tuple[int, ...]:
        """See Space."""
        side = resolution // self.first_stage.factor
        return self.first_stage.latent_channels, side, side


@dataclass(frozen=True)
class TokenSpace:
    """Rows of a codebook, int64 [B, N], a token map's lines one after another."""

    first_stage: FirstStage
    side: int
    contents: ClassVar[tuple[str, ...]] = ("indices",)

    def to_model(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
        """See Space: int64 [B, N]."""
        return batch["indices"].flatten(1).long()

    def to_pictures(self, x0: Tensor) -> Tensor:
        """See Space; where tokens are missing at the end, they are row 0."""
        missing = self.side * self.side - x0.shape[1]
        tokens = torch.nn.functional.pad(x0, (0, missing))
        return self.first_stage.decode_indices(tokens.reshape(-1, self.side, self.side))

    def of_pictures(self, images: Tensor) -> Tensor:
        """See Space: int64 [B, N]."""
        return self.first_stage.encode_indices(images).flatten(1)

    def shape(self, resolution: int) -> tuple[int, ...]:
        """See Space."""
        return ((resolution // self.first_stage.factor) ** 2,)


AnySpaceConfig: TypeAlias = PixelsConfig | LatentsConfig | TokensConfig
