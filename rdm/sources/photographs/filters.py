"""Filters: photographs and patches that decode, but that nobody would look for."""

from __future__ import annotations

import numpy as np
from PIL import Image
from pydantic import Field

from rdm.config import Config

TOO_SMALL, TOO_LONG = "too small", "too long"  # causes, of photographs in the ledger and of patches
_SIDE = 8  # of the grid of a perceptual hash
# A patch is reduced to this side before its contrast is measured: grain is no content.
_CONTRAST_SIDE = 32


class FilterConfig(Config):
    """Limits for photographs and patches. All are off by default, as in RDM's database."""

    min_image_side: int = Field(
        default=0, ge=0, description="least shortest side of a photograph, pixels"
    )
    max_image_aspect: float = Field(
        default=0,
        ge=0,
        description="greatest longest side of a photograph over its shortest; 0: any",
    )
    min_patch_side: int = Field(
        default=0,
        ge=0,
        description="least shortest side of a patch, in pixels of the stored photograph",
    )
    max_patch_aspect: float = Field(
        default=0, ge=0, description="greatest longest side of a patch over its shortest; 0: any"
    )
    min_contrast: float = Field(
        default=0,
        ge=0,
        lt=128,
        description="least standard deviation of a patch's luminance, of 0 to 127.5",
    )
    near_duplicate_bits: int | None = Field(
        default=None,
        ge=0,
        le=15,
        description="of two photographs whose 128-bit perceptual hashes differ in at most so "
        "many bits only the first by image id is kept; None: all are",
    )


def image_reason(width: int, height: int, config: FilterConfig) -> str:
    """Return why a photograph of this upright size is left out (`cause: detail`); "" if kept."""
    return _size_reason(width, height, config.min_image_side, config.max_image_aspect)


def patch_reason(width: int, height: int, config: FilterConfig) -> str:
    """Return why a patch of this size is left out (`cause: detail`); "" if it is kept."""
    if min(width, height) < 1:
        return "empty box"
    return _size_reason(width, height, config.min_patch_side, config.max_patch_aspect)


def _size_reason(width: int, height: int, min_side: int, max_aspect: float) -> str:
    if min(width, height) < min_side:
        return f"{TOO_SMALL}: {width}x{height}"
    if max_aspect and max(width, height) > max_aspect * min(width, height):
        return f"{TOO_LONG}: {width}x{height}"
    return ""


def contrast(patch: Image.Image) -> float:
    """Return the standard deviation (0 to 127.5) of a patch's luminance, reduced to 32 x 32.

    Whole numbers until the last step, so that every machine gives the same.
    """
    # In whole numbers, n sum(v^2) - (sum v)^2 is n^2 times the variance, without rounding.
    small = patch.convert("L").resize((_CONTRAST_SIDE, _CONTRAST_SIDE), Image.Resampling.BOX)
    values = np.asarray(small, np.int64)
    return float(np.sqrt(values.size * (values**2).sum() - values.sum() ** 2) / values.size)


def perceptual_hash(image: Image.Image) -> str:
    """Return the 128-bit difference hash of an upright photograph as 32 hexadecimal digits.

    One bit for each of 8 x 8 places: whether it is brighter than its neighbor to the right; and 64
    more for the neighbor below (dHash, Krawetz 2013, in both directions). A copy in another size or
    quality differs in a few bits.
    """
    gray = image.convert("L")
    across = np.asarray(gray.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), np.int16)
    down = np.asarray(gray.resize((_SIDE, _SIDE + 1), Image.Resampling.BOX), np.int16)
    bits = np.concatenate(
        [(across[:, :-1] > across[:, 1:]).ravel(), (down[:-1] > down[1:]).ravel()]
    )
    return np.packbits(bits).tobytes().hex()
