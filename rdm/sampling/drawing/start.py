"""A request's start, read from its files and encoded for the model that draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

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
from rdm.sampling.request.start_request import StartRecord, StartRequest
from rdm.sampling.retrieval.queries import load_query_image


@dataclass(frozen=True, eq=False)
class OpenedStart:
    """A start that is ready to draw from.

    Attributes:
        request: as it was asked for.
        record: what identifies it.
        pixels: uint8 [H, W, 3], the picture at the model's size; None: there is none.
        kept: bool [H, W], where its pixels are kept; None: nowhere.
        x0: [1, ...], the picture in the model's space.
        keep: bool [1, 1, h, w], where that is kept: cells of which every pixel is.
    """

    request: StartRequest
    record: StartRecord
    pixels: NDArray[np.uint8] | None = None
    kept: NDArray[np.bool_] | None = None
    x0: Tensor | None = None
    keep: Tensor | None = None

    def of(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device,
        inverted: Tensor | None = None,
    ) -> Start:
        """Return the start of a batch.

        Args:
            seeds: of its pictures.
            shape: of one sample.
            device: where they are drawn.
            inverted: the noise of the picture, in place of the seeds'.
        """
        noise = inverted
        if (towards := self.request.towards) is not None:
            own = seeded_noise(seeds, shape, device=device) if inverted is None else inverted
            other = seeded_noise([towards] * len(seeds), shape, device=device)
            noise = slerp(own, other, self.request.fraction)
        if self.x0 is None or self.request.invert:
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
def open_start(
    request: StartRequest, model: Model, pictures: Mapping[str, Image.Image] = MappingProxyType({})
) -> OpenedStart:
    """Read a start's files and encode them.

    Pictures are cropped to their middle square and brought to the model's size; one to outpaint is
    shrunk whole into the middle.

    Args:
        request: names the picture and its mask.
        model: draws.
        pictures: open ones by their names in the request; the others are files.

    Raises:
        UsageError: the model draws tokens, the mask is not of the picture's size, or the margin
            leaves nothing of the picture.
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
        return OpenedStart(request, request.record())

    # The record is of files as they are given, whatever is cropped from them.
    image = _picture(request.image, pictures)
    record = request.record(pictures)
    side = config.network.sample_shape[-1] * _factor(model)
    kept = None
    if request.outpaint is not None:
        pixels, kept = _on_canvas(image, side, request.outpaint)
    else:
        pixels = np.asarray(_fitted(image, side, Image.Resampling.LANCZOS))
    if request.mask is not None:
        # Picture and mask share their geometry, so that they stay on each other.
        kept = _kept(request.mask, _picture(request.mask, pictures), image, side)

    # Encoded whole, also where a mask leaves little of it: cells see beyond their own pixels.
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(model.device)
    x0 = model.generator.space.of_pictures(images)
    if kept is None:
        return OpenedStart(request, record, pixels, x0=x0)

    # A cell with a pixel that is to be drawn anew is drawn anew.
    anew = torch.from_numpy(~kept)[None, None].float()
    keep = functional.max_pool2d(anew, _factor(model)) == 0
    if request.outpaint is not None and not keep.any():
        raise UsageError(
            f"with {request.outpaint} pixels on each side nothing is left of the picture: the "
            f"model draws {side} x {side} pixels, in cells of {_factor(model)}",
            where="--outpaint",
            fix="a smaller margin",
        )
    return OpenedStart(request, record, pixels, kept, x0, keep.to(model.device))


def _picture(name: str, pictures: Mapping[str, Image.Image]) -> Image.Image:
    opened = pictures.get(name)
    return load_query_image(Path(name)) if opened is None else opened


def _on_canvas(
    image: Image.Image, side: int, margin: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a whole picture in the middle of a canvas uint8 [side, side, 3], and where it is.

    Its edges go on outwards, so that its border is encoded beside something of its own kind.
    """
    inner = side - 2 * margin
    if inner < 1:
        raise UsageError(
            f"a margin of {margin} pixels on each side leaves no room for the picture: the model "
            f"draws {side} x {side} pixels",
            where="--outpaint",
            fix=f"at most {(side - 1) // 2}",
        )

    # Proportions are kept, so that a margin may be wider on two sides than was asked.
    shrunk = np.asarray(ImageOps.contain(image, (inner, inner), Image.Resampling.LANCZOS))
    height, width = shrunk.shape[:2]
    if (height, width) == (side, side):
        raise UsageError(
            "the picture fills all that the model draws: nothing would be drawn",
            where="--outpaint",
            fix="a margin of at least 1",
        )

    # What is kept is told by a mask: edge pixels have the same colors inside and out.
    top, left = (side - height) // 2, (side - width) // 2
    around = ((top, side - height - top), (left, side - width - left))
    kept = np.pad(np.ones((height, width), bool), around)
    return np.pad(shrunk, (*around, (0, 0)), mode="edge"), kept


def _kept(place: str, mask: Image.Image, image: Image.Image, side: int) -> NDArray[np.bool_]:
    """Return where the mask keeps the picture, bool [side, side]."""
    if mask.size != image.size:
        raise UsageError(
            f"the mask has {mask.width} x {mask.height} pixels, the picture to start from "
            f"{image.width} x {image.height}",
            where=place,
            fix="give a mask of the picture's size: white is drawn anew, black is kept",
        )
    kept = np.asarray(_fitted(mask.convert("L"), side, Image.Resampling.BOX)) < 128
    if kept.all():
        raise UsageError(
            "the mask is black everywhere: nothing would be drawn",
            where=place,
            fix="paint white what is to be drawn anew",
        )
    return kept


def _fitted(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    return ImageOps.fit(image, (side, side), resampling)


def _factor(model: Model) -> int:
    """Return the side of a cell of the model's space, in pixels."""
    return 1 if model.first_stage is None else model.first_stage.factor
