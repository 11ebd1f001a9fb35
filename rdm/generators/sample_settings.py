"""How pictures are drawn, and what is reported while they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from rdm.config import Config

Setting = float | int | str | tuple[float, float] | None


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
    sampler: Literal["ddim", "ancestral"] = Field(
        default="ddim", description="diffusion: DDIM, or DDPM's own ancestral sampling"
    )
    num_steps: int = Field(default=100, ge=1, description="diffusion: steps of the sampler")
    eta: float = Field(
        default=1.0, ge=0, le=1, description="DDIM's eta; 0 is deterministic, RDM samples with 1"
    )
    variance: Literal["posterior", "beta"] = Field(
        default="posterior",
        description="ancestral sampling's variance: beta-tilde of the posterior, or beta",
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


@dataclass(frozen=True)
class DrawStep:
    """A step of a batch: a denoising step of a diffusion model, or a token of a RARM.

    Attributes:
        seeds: of the batch's pictures.
        index: 1 .. total.
        total: steps of the batch.
        preview: returns the pictures as they would be now, uint8 [B, H, W, 3]; they are decoded
            only when it is called.
    """

    seeds: tuple[int, ...]
    index: int
    total: int
    preview: Callable[[], NDArray[np.uint8]]


OnDrawStep = Callable[[DrawStep], object]
