"""Pictures as data URIs, small enough to live inside a page."""

from __future__ import annotations

import base64
import io

from PIL import Image

from rdm.report.data import Pixels, check_pixels

# a page shows no picture larger than half of this, so screens of double density stay sharp
MAX_SIDE = 384
PNG_SIDE = 64  # up to this size a PNG is small, and JPEG's blocks would show
PIXELATED_SIDE = 32  # up to this size pixels are shown as squares instead of blurred
_JPEG_QUALITY = 88


def data_uri(pixels: Pixels) -> str:
    """Return a picture as a `data:` URI: PNG up to 64 pixels a side, else JPEG of at most 384.

    Args:
        pixels: uint8 [H, W, 3], 0..255.

    Raises:
        ValueError: the array is not such a picture.
    """
    check_pixels(pixels)
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(image.size) <= PNG_SIDE:
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def is_pixel_art(pixels: Pixels) -> bool:
    """Return whether a picture is so small that its pixels are best shown as squares."""
    return max(pixels.shape[:2]) <= PIXELATED_SIDE
