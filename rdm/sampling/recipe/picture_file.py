"""A picture's file: a PNG that carries its recipe, and the marks that other programs read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from rdm.errors import SourceError
from rdm.sampling.recipe.record import Metadata, SampleRecord
from rdm.sampling.recipe.xmp import xmp_packet

RECIPE_KEY = "rdm"
XMP_KEY = "XML:com.adobe.xmp"


def png_bytes(
    pixels: NDArray[np.uint8], record: SampleRecord, metadata: Metadata = "full"
) -> bytes:
    """Return a PNG of pixels uint8 [H, W, 3] that carries a recipe.

    The recipe is the iTXt chunk `rdm`, then XMP; neither is compressed, so that every reader sees
    them.
    """
    carried = record.for_png(metadata)
    text = PngInfo()
    text.add_itxt(RECIPE_KEY, carried.model_dump_json())
    text.add_itxt(XMP_KEY, xmp_packet(carried))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


class Picture(NamedTuple):
    """A drawn picture, read back.

    Attributes:
        pixels: uint8 [H, W, 3].
        record: its recipe.
        texts: of the file, by their keys.
    """

    pixels: NDArray[np.uint8]
    record: SampleRecord
    texts: dict[str, str]


def read_picture(path: Path) -> Picture:
    """Return pixels, recipe and texts of a picture that `rdm sample` drew.

    Raises:
        SourceError: there is no such picture, or it carries no recipe.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            # texts may follow the pixels where another program saved the picture again
            image.load()
            texts = {key: str(text) for key, text in getattr(image, "text", {}).items()}
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise SourceError(
            "the picture does not exist", where=path, fix="check the file's name"
        ) from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise SourceError(
            f"the picture cannot be read as a PNG: {error}", where=path, fix="give a PNG"
        ) from error

    # Sites and editors drop texts from pictures: a missing recipe is common, and no damage.
    if RECIPE_KEY not in texts:
        raise SourceError(
            "the picture carries no record of what it was drawn from",
            where=path,
            fix="give a PNG as `rdm sample` wrote it; other programs and sites take texts out",
        )
    try:
        return Picture(pixels, SampleRecord.model_validate_json(texts[RECIPE_KEY]), texts)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SourceError(
            f"the picture's record is damaged, or of another release: {place}: {first['msg']}",
            where=path,
            fix="give the picture as drawn",
        ) from error


def parents_of(path: Path) -> tuple[str, ...]:
    """Return the digest of the picture in a file where it was drawn and carries its recipe."""
    try:
        return (read_recipe(path).pixels_sha256,)
    except SourceError:
        return ()


def read_recipe(path: Path) -> SampleRecord:
    """Return the recipe of a picture; otherwise as `read_picture`."""
    return read_picture(path).record
