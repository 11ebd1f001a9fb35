"""What a pipeline's call returns: pictures in one of diffusers' types, and what they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.sampling.recipe.record import Credit, SampleRecord
from rdm.sampling.write_credits import credits_of

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True, eq=False)
class RetrievalPipelineOutput:
    """Pictures and what they came from, in the same order.

    Attributes:
        images: PIL pictures, an array [B, H, W, 3] or a tensor [B, 3, H, W] in [0, 1], or latents.
        recipes: a record of each.
        interrupted: whether pictures are missing because the drawing was interrupted.
        databases: of the neighbors.
    """

    images: Any
    recipes: tuple[SampleRecord, ...]
    interrupted: bool
    databases: tuple[RetrievalDatabase, ...] = field(default=(), repr=False)

    @property
    def neighbors(self) -> tuple[tuple[Credit, ...], ...]:
        """Those that conditioned each picture, with whose photographs they are."""
        return tuple(recipe.neighbors for recipe in self.recipes)

    def credits(self) -> str:
        """Return whose photographs conditioned the pictures, as `rdm sample --credits` writes."""
        return credits_of(self.recipes, self.databases)


def as_type(pixels: np.ndarray, output_type: OutputType) -> Any:
    """Return pictures uint8 [B, H, W, 3] as diffusers' output types have them."""
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in pixels]
    if output_type == "np":
        return pixels.astype(np.float32) / 255
    if output_type == "pt":
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 255
    raise UsageError(
        f"there is no output type {output_type!r}", where="output_type", fix="pil, np, pt or latent"
    )
