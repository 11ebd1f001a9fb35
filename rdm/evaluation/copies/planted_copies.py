"""Planted copies: what a detector must find to be believed when it finds nothing."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_JPEG_QUALITY = 30
_CROPPED_SHARE = 0.8  # of each side
_BRIGHTNESS = 1.3
_BLUR_SHARE = 1 / 64  # standard deviation, of the side


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return Image.open(buffer).convert("RGB")


def _cropped(image: Image.Image) -> Image.Image:
    side = round(_CROPPED_SHARE * image.width)
    left = (image.width - side) // 2
    box = (left, left, left + side, left + side)
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


def _brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(_BRIGHTNESS)


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(_BLUR_SHARE * image.width))


PLANTED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 30": _jpeg,
    "central 80%": _cropped,
    "mirror image": ImageOps.mirror,
    "brighter by 30%": _brighter,
    "blurred by one pixel in 64": _blurred,
}


def planted(name: str, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return copies of square pictures uint8 [N, S, S, 3], changed as `PLANTED` names it."""
    return np.stack([np.asarray(PLANTED[name](Image.fromarray(one))) for one in pictures])


def mirrored(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mirror images of pictures uint8 [N, H, W, 3]."""
    return np.ascontiguousarray(pictures[:, :, ::-1])
