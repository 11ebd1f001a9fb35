"""Grids of pictures drawn during training, at steps in equal ratios: many early, few late."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdm.storage.files import atomic_path

GRIDS = "grids"
NUM_PICTURES = 16
_FIRST_STEP = 10


def is_grid_step(step: int, per_decade: int, max_steps: int) -> bool:
    """Return whether a step has a grid: round(10 x 10^(i / per_decade)), and the last."""
    if per_decade == 0:
        return False
    if step == max_steps:
        return True
    if step < _FIRST_STEP:
        return False
    # From the step to its place in the series and back: equal only for steps of the series.
    nearest = round(math.log10(step / _FIRST_STEP) * per_decade)
    return step == round(_FIRST_STEP * 10 ** (nearest / per_decade))


def grid_path(out: Path, step: int) -> Path:
    """Return where the grid of a step lies."""
    return out / GRIDS / f"step-{step:08d}.png"


def write_grid(pictures: NDArray[np.uint8], path: Path) -> None:
    """Write pictures [N, H, W, 3] as one PNG, about sqrt(N) in a row, two pixels apart."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    _, height, width, _ = pictures.shape
    grid = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + 2), number % columns * (width + 2)
        grid[top : top + height, left : left + width] = picture
    with atomic_path(path) as temporary:
        Image.fromarray(grid).save(temporary, "PNG")


def latest_grid(out: Path) -> Path | None:
    """Return the newest grid of a run."""
    return max((out / GRIDS).glob("step-*.png"), default=None)
