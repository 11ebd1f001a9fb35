"""Contact sheets, and pages of queries beside their neighbors that need no server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rdm.report.data import Pixels, QueryNeighbors, SampleGroup, check_pixels
from rdm.report.html.page import render, write_text


@dataclass(frozen=True, eq=False)
class GallerySection:
    """A heading with loose pictures, lookups (query -> neighbors) and sample groups (query ->
    neighbors -> samples)."""

    title: str
    note: str = ""
    pictures: tuple[Pixels, ...] = ()
    lookups: tuple[QueryNeighbors, ...] = ()
    samples: tuple[SampleGroup, ...] = ()

    def __post_init__(self) -> None:
        for pixels in self.pictures:
            check_pixels(pixels)


def write_gallery(sections: Sequence[GallerySection], path: Path, title: str) -> None:
    """Write a gallery as one HTML file that needs no other file and no network; atomic.

    Raises:
        StorageError: the file cannot be written; an older gallery then still stands.
    """
    write_text(path, render("gallery.html.j2", sections=list(sections), title=title))


def contact_sheet(
    images: Sequence[Pixels],
    columns: int,
    *,
    tile_side: int = 128,
    gap: int = 4,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """Return pictures row by row on one image, each scaled to fit a square tile, centered.

    Args:
        images: uint8 [H, W, 3], 0..255; at least one.
        columns: tiles per row, >= 1; fewer pictures than this make a narrower sheet.
        tile_side: side of a tile in pixels.
        gap: pixels between tiles; there is none around the sheet.
        background: color of the gaps and of what a picture leaves of its tile.

    Raises:
        ValueError: there is no picture, or fewer than one column.
    """
    if not images or columns < 1:
        raise ValueError(
            f"a contact sheet needs a picture and a column, got {len(images)} and {columns}"
        )

    # Tiles with a gap between them, and none at the edges.
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    pitch = tile_side + gap
    sheet = Image.new("RGB", (columns * pitch - gap, rows * pitch - gap), background)

    for index, pixels in enumerate(images):
        check_pixels(pixels)
        tile = _fitted(Image.fromarray(pixels), tile_side)
        left, top = index % columns * pitch, index // columns * pitch
        sheet.paste(
            tile, (left + (tile_side - tile.width) // 2, top + (tile_side - tile.height) // 2)
        )
    return sheet


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    whole = side % max(image.size) == 0
    # A whole enlargement shows the pixels that were generated; everything else needs a filter.
    return image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
