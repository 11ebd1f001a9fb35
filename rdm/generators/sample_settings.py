"""How pictures are drawn, and what is reported while they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from rdm.config import Config
from rdm.diffusion.sampler_names import (
    ALIASES,
    DEFAULT_ETA,
    DEFAULT_VARIANCE,
    SAMPLERS,
    SamplerName,
    StepSpacing,
    VarianceName,
    check_fits,
)

Setting = float | int | str | tuple[float, float] | dict[str, float] | None


class SampleSettings(Config):
    """How pictures are drawn."""

    k: int = Field(
        default=4,
        ge=1,
        description="neighbors that condition a sample; need not be the training's k",
    )
    guidance_scale: float = Field(
        default=2.0, ge=0, description="s of e_u + s (e_c - e_u); 1: no guidance"
    )
    guidance_interval: tuple[float, float] | None = Field(
        default=None,
        description="diffusion: log-SNRs between which guidance acts, as [-3,3]: faster, "
        "often better; None: all",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="samples drawn at once, which decides the last bits; smaller batches are "
        "filled up; None: 8 on a CPU, 32 on a GPU",
    )
    sampler: SamplerName = Field(
        default="ddim", description=f"diffusion: one of {', '.join(SAMPLERS)}"
    )
    num_steps: int = Field(default=100, ge=1, description="diffusion: steps of the sampler")
    spacing: StepSpacing = Field(
        default="uniform",
        description="diffusion: of the steps: uniform; trailing starts at the noisiest level; "
        "karras spends more of them where there is little noise",
    )
    eta: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="ddim: 0 is deterministic; None: 1, as RDM samples",
    )
    variance: VarianceName | None = Field(
        default=None,
        description="ddpm: beta-tilde of the posterior, beta, or what the network learned; "
        "None: posterior",
    )
    thresholding: Literal["none", "static", "dynamic"] = Field(
        default="none",
        description="diffusion of pixels: clip the predicted picture to [-1, 1], or scale it "
        "into that range, which strong guidance leaves",
    )
    guidance_scales: dict[str, float] | None = Field(
        default=None,
        description="diffusion: a scale by source, as --set guidance_scales.text=3; those that "
        "are not named have guidance_scale",
    )
    autoguidance: str | None = Field(
        default=None,
        description="diffusion: folder of a weaker model of the same training, such as an early "
        "checkpoint; guidance then leads away from it in place of the null",
    )
    temperature: float = Field(
        default=1.0, ge=0, description="RARM: divides the logits; 0: the likeliest token"
    )
    top_k: int | None = Field(
        default=None, ge=1, description="RARM: draw of the k likeliest tokens; None: of all"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="RARM: draw of the likeliest with this probability"
    )

    @field_validator("guidance_interval")
    @classmethod
    def _rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("the lower log-SNR comes first, as in [-3,3]")
        return value

    @field_validator("sampler", mode="before")
    @classmethod
    def _by_its_name(cls, value: object) -> object:
        return ALIASES.get(value, value) if isinstance(value, str) else value

    @field_validator("guidance_scales")
    @classmethod
    def _not_negative(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if wrong := [name for name, scale in (value or {}).items() if scale < 0]:
            raise ValueError(f"the guidance scale of {wrong[0]} is below 0")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_fits(self.sampler, spacing=self.spacing, eta=self.eta, variance=self.variance)
        least = SAMPLERS[self.sampler].least_steps
        if self.num_steps < least:
            raise ValueError(
                f"{SAMPLERS[self.sampler].title} takes at least {least} steps: set num_steps"
            )
        if self.autoguidance is not None and self.guidance_scales is not None:
            raise ValueError(
                "autoguidance leads away from one thing, guidance_scales from several: set one"
            )
        return self

    def filled(self) -> SampleSettings:
        """Return the settings with the sampler's own defaults in place of None."""
        takes = SAMPLERS[self.sampler].takes
        own = {"eta": DEFAULT_ETA, "variance": DEFAULT_VARIANCE}
        missing = [name for name in own if name in takes and getattr(self, name) is None]
        return self.model_copy(update={name: own[name] for name in missing})


@dataclass(frozen=True)
class DrawStep:
    """A step of a batch: a denoising step of a diffusion model, or a token of a RARM.

    Attributes:
        seeds: of the batch's pictures.
        index: 1 .. total.
        total: steps of the batch.
        preview: returns the pictures as they would be now, uint8 [B, H, W, 3]; they are decoded
            only when it is called.
        x0: the present guess of the samples [B, ...], in the model's space.
    """

    seeds: tuple[int, ...]
    index: int
    total: int
    preview: Callable[[], NDArray[np.uint8]]
    x0: Tensor


OnDrawStep = Callable[[DrawStep], object]
