"""A request's start, read from its files and encoded for the model that draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from rdm.diffusion.editing import Start, slerp
from rdm.diffusion.samplers import seeded_noise
from rdm.errors import UsageError
from rdm.generators.model_folder import Model
from rdm.sampling.queries import load_query_image
from rdm.sampling.start_request import StartRequest


@dataclass(frozen=True, eq=False)
class OpenedStart:
    """A start that is ready to draw from.

    Attributes:
        request: as it was asked for.
        pixels: uint8 [H, W, 3], the picture at the model's size; None: there is none.
        kept: bool [H, W], where its pixels are kept; None: nowhere.
        x0: [1, ...], the picture in the model's space.
        keep: bool [1, 1, h, w], where that is kept: cells of which every pixel is.
    """

    request: StartRequest
    pixels: NDArray[np.uint8] | None = None
    kept: NDArray[np.bool_] | None = None
    x0: Tensor | None = None
    keep: Tensor | None = None

    def of(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Start:
        """Return the start of a batch.

        Args:
            seeds: of its pictures.
            shape: of one sample.
            device: where they are drawn.
        """
        noise = None
        if (towards := self.request.towards) is not None:
            own, other = (
                seeded_noise(of, shape, device=device) for of in (seeds, [towards] * len(seeds))
            )
            noise = slerp(own, other, self.request.fraction)
        if self.x0 is None:
            return Start(noise=noise)
        x0 = self.x0.expand(len(seeds), *shape)
        strength = self.request.acting_strength
        return Start(x0, 1.0 if strength is None else strength, self.keep, noise)

    def finished(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return drawn pictures uint8 [B, H, W, 3] with what is kept exactly as it was given.

        A first stage gives no picture back to the last bit, and its cells are larger than pixels.
        """
        if self.kept is None or self.pixels is None:
            return pictures
        return np.where(self.kept[None, :, :, None], self.pixels[None], pictures)


@torch.no_grad()
def open_start(request: StartRequest, model: Model) -> OpenedStart:
    """Read a start's files and encode them.

    Pictures are cropped to their middle square and brought to the model's size.

    Raises:
        UsageError: the model draws tokens, or the mask is not of the picture's size.
        SourceError: a file is not there, or is no picture.
    """
    config = model.config
    if config.space.kind == "tokens":
        raise UsageError(
            "tokens are drawn one after another: there is no start from a picture or mixed noise",
            where="--start",
            fix="leave it out, or take a model of a diffusion recipe",
        )
    if request.image is None:
        return OpenedStart(request)

    # Picture and mask share their geometry, so that they stay on each other.
    image = load_query_image(Path(request.image))
    side = config.network.sample_shape[-1] * _factor(model)
    pixels = np.asarray(_fitted(image, side, Image.Resampling.LANCZOS))
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(model.device)
    x0 = model.generator.space.of_pictures(images)
    if request.mask is None:
        return OpenedStart(request, pixels, x0=x0)

    kept = _kept(request, image, side)
    # A cell with a pixel that is to be drawn anew is drawn anew.
    anew = torch.from_numpy(~kept)[None, None].float()
    keep = functional.max_pool2d(anew, _factor(model)) == 0
    return OpenedStart(request, pixels, kept, x0, keep.to(model.device))


def _kept(request: StartRequest, image: Image.Image, side: int) -> NDArray[np.bool_]:
    """Return where the mask keeps the picture, bool [side, side]."""
    assert request.mask is not None
    mask = load_query_image(Path(request.mask))
    if mask.size != image.size:
        raise UsageError(
            f"the mask has {mask.width} x {mask.height} pixels, the picture to start from "
            f"{image.width} x {image.height}",
            where=request.mask,
            fix="give a mask of the picture's size: white is drawn anew, black is kept",
        )
    kept = np.asarray(_fitted(mask.convert("L"), side, Image.Resampling.BOX)) < 128
    if kept.all():
        raise UsageError(
            "the mask is black everywhere: nothing would be drawn",
            where=request.mask,
            fix="paint white what is to be drawn anew",
        )
    return kept


def _fitted(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    return ImageOps.fit(image, (side, side), resampling)


def _factor(model: Model) -> int:
    """Return the side of a cell of the model's space, in pixels."""
    return 1 if model.first_stage is None else model.first_stage.factor
