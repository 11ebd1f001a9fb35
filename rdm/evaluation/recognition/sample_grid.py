"""A picture of samples, each beside the pictures that conditioned it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rdm.storage import Folder

_SIDE = 128  # pixels of a picture in the grid
_GAP = 4
_TEXT_WIDTH = 190


@dataclass(frozen=True)
class GridRow:
    """One sample: what is written beside it, its pixels [H, W, 3], and its context's [k, H, W,
    3]."""

    text: str
    sample: NDArray[np.uint8]
    context: NDArray[np.uint8]


def draw_grid(rows: Sequence[GridRow], folder: Folder, name: str) -> None:
    """Write rows of text, sample and context as a PNG."""
    columns = 1 + max(len(row.context) for row in rows)
    width = _TEXT_WIDTH + columns * (_SIDE + _GAP) + 2 * _GAP
    grid = Image.new("RGB", (width, len(rows) * (_SIDE + _GAP) + _GAP), "white")
    pen = ImageDraw.Draw(grid)

    for number, row in enumerate(rows):
        top = _GAP + number * (_SIDE + _GAP)
        pen.text((_GAP, top + _SIDE // 2), _plain(row.text), fill="black")
        for column, pixels in enumerate([row.sample, *row.context]):
            # Pixels as they are: smoothing would hide how coarse small samples are.
            enlarged = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            left = _TEXT_WIDTH + column * (_SIDE + _GAP) + (2 * _GAP if column else 0)
            grid.paste(enlarged, (left, top))

    buffer = io.BytesIO()
    grid.save(buffer, "PNG", optimize=True)
    folder.write_bytes(name, buffer.getvalue())


def _plain(text: str) -> str:
    """Return at most 30 characters that PIL's own font has."""
    return text.encode("latin-1", "replace").decode("latin-1")[:30]
