"""Patches as coordinates: where a photograph is cut, as a function of its id alone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rdm.config import Config


class CropConfig(Config):
    """Settings of the cut of a photograph into patches.

    The photograph is thought of as resized so that its shortest side has `frame_size` pixels and
    centre-cropped to a square of that size; patches are squares of `patch_size` pixels in that
    frame. (RDM's Open Images database: frame 1200, patches of 256, two or three per photograph.) Of
    a photograph much smaller than the frame, patches are small details: `whole` takes all of its
    centre square instead, and looks at no size. Stored coordinates are pixels of the photograph as
    it lies in `images/`.
    """

    mode: Literal["random", "grid", "whole", "boxes"] = Field(
        default="random",
        description="random crops, an aligned grid, whole: one patch, the central square "
        "(for small photographs), or boxes that people drew (of a database only)",
    )
    frame_size: int = Field(
        default=1200,
        ge=1,
        description="side of the centre square, in pixels of the resized photograph",
    )
    patch_size: int = Field(default=256, ge=1, description="side of a patch, in the same pixels")
    min_patches: int = Field(
        default=2, ge=1, description="least number of random patches per photograph"
    )
    max_patches: int = Field(
        default=3, ge=1, description="greatest number of random patches per photograph"
    )
    seed: int = Field(default=0, description="changes every random crop")

    @model_validator(mode="after")
    def _consistent(self) -> CropConfig:
        if self.patch_size > self.frame_size:
            raise ValueError(
                f"patch_size {self.patch_size} is larger than frame_size {self.frame_size}"
            )
        if self.min_patches > self.max_patches:
            raise ValueError(
                f"min_patches {self.min_patches} is larger than max_patches {self.max_patches}"
            )
        return self


def crop_boxes(image_id: str, width: int, height: int, config: CropConfig) -> NDArray[np.int32]:
    """Return the patches of one photograph as [P, 4] int32 rows (x0, y0, x1, y1) in its own pixels.

    The crop seed is a hash of the image id and the patch number, so the result does not depend on
    the number of workers, on the order of photographs, or on how many patches another photograph
    has.

    Args:
        image_id: the photograph's id in its source.
        width: of the upright photograph, in pixels.
        height: likewise.
        config: mode and sizes.

    Raises:
        ValueError: the mode is `boxes`, which are no function of the id.
    """
    if config.mode == "boxes":
        raise ValueError("boxes are read from a file: see BoxConfig")
    # The whole centre square is one patch of a frame of one pixel.
    if config.mode == "whole":
        config = config.model_copy(update={"mode": "grid", "frame_size": 1, "patch_size": 1})

    # From the frame to the photograph: its shortest side is the frame's side, its centre the
    # centre.
    corners = _grid_corners(config) if config.mode == "grid" else _random_corners(image_id, config)
    scale = min(width, height) / config.frame_size
    offset = np.array(
        [(width - config.frame_size * scale) / 2, (height - config.frame_size * scale) / 2]
    )

    # Rounded to whole pixels, and kept inside.
    low = np.floor(corners * scale + offset + 0.5)
    side = max(1, round(config.patch_size * scale))
    limit = np.array([width - side, height - side])

    low = np.clip(low, 0, limit)
    return np.concatenate([low, low + side], axis=1).astype(np.int32)


def _grid_corners(config: CropConfig) -> NDArray[np.float64]:
    """Return corners [P, 2] of the patches that fill the frame, with equal margins."""
    steps = np.arange(config.frame_size // config.patch_size) * config.patch_size
    margin = (config.frame_size % config.patch_size) / 2
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1) + margin


def _random_corners(image_id: str, config: CropConfig) -> NDArray[np.float64]:
    """Return corners [P, 2] of random patches: whole pixels, by 32 bits of a hash each."""
    spread = config.max_patches - config.min_patches + 1
    count = config.min_patches + _hash(image_id, "count", config.seed) % spread
    free = config.frame_size - config.patch_size + 1
    corners = []
    for number in range(count):
        bits = _hash(image_id, number, config.seed)
        corners.append([(bits >> 32) * free >> 32, (bits & 0xFFFFFFFF) * free >> 32])
    return np.array(corners, dtype=np.float64)


def _hash(image_id: str, what: int | str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{image_id}\0{what}".encode(), seed=seed)
