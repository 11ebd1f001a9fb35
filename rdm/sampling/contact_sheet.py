"""`contact.png`: the first pictures of a folder as one."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rdm.sampling.output import CONTACT, INDEX, read_samples, stored_records
from rdm.sampling.recipe.picture_file import XMP_KEY
from rdm.sampling.recipe.xmp import sheet_packet
from rdm.storage import Folder

MAX_PICTURES = 100
_LARGEST_SIDE, _GAP = 256, 2


def write_contact_sheet(out: Path, *, redrawn: bool) -> Path:
    """Write and return a sheet of a finished folder's first 100 pictures, in their order.

    It is marked as they are: that a network drew it, and whose photographs conditioned it.

    Args:
        out: the folder.
        redrawn: whether a sheet that is there is of other pictures.
    """
    path = out / CONTACT
    if path.exists() and not redrawn:
        return path
    pictures = [Image.fromarray(item.pixels) for item in read_samples(out, MAX_PICTURES)]
    records = [record for record, _ in zip(stored_records(out / INDEX), pictures, strict=False)]
    text = PngInfo()
    text.add_itxt(XMP_KEY, sheet_packet(records))
    buffer = io.BytesIO()
    contact_sheet(pictures).save(buffer, "PNG", pnginfo=text)
    Folder(out).write_bytes(CONTACT, buffer.getvalue())
    return path


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one size side by side, row after row, on white; nearly a square.

    Large ones are made smaller, to sides of at most 256 pixels.
    """
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    scale = min(1.0, _LARGEST_SIDE / max(pictures[0].size))
    width, height = (max(1, round(side * scale)) for side in pictures[0].size)
    sheet = Image.new(
        "RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white"
    )
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        # Unchanged where they fit: a sheet of small pictures shows their pixels.
        shown = picture if picture.size == (width, height) else picture.resize((width, height))
        sheet.paste(shown, (column * (width + _GAP), row * (height + _GAP)))
    return sheet
