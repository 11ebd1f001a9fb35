"""Decode untrusted pictures to upright 8-bit sRGB, within limits.

Metadata that is damaged or too large does not cost a picture: see `containers`. A profile of
another color space than sRGB is applied, see `colors`.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rdm.sources.photographs.colors import ToSrgb, conversion
from rdm.sources.photographs.containers import pixel_file, take_apart
from rdm.sources.photographs.metadata import Parts

MAX_PIXELS = 120_000_000
MAX_ASPECT = 200
_BAND_PIXELS = 4_000_000  # converted at a time
_MAX_DECODED_BYTES = 10 * MAX_PIXELS  # of the decoders, beside the picture's file
_BITS_PER_SAMPLE, _TILE_SIDES = 258, (322, 323)  # TIFF tags
_EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
_ORIENTATION_OF_TURN = {90: 8, 180: 3, 270: 6}  # counter-clockwise degrees as an EXIF orientation
_UPRIGHT = {  # the transposition that makes each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo")
IMAGE_SUFFIXES = frozenset(
    {*_JPEG_SUFFIXES, ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
)


DECODING_REVISION = 2
"""Raised whenever a decodable picture gets other pixels. 1: color profiles were passed over."""


class ImageDecodeError(ValueError):
    """A picture that cannot be used; `reason` is a short, countable cause."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)

    def __reduce__(self) -> tuple[object, ...]:
        return (ImageDecodeError, (self.reason, self.detail))


def image_extension(data: bytes) -> str:
    """Return the file ending of a picture's bytes (`jpg`, `png`, ...), without decoding a pixel.

    Raises:
        ImageDecodeError: the bytes are no picture of a supported format.
    """
    with _translated_errors(), _opened(data, take_apart(data)) as image:
        return _EXTENSIONS[image.format or ""]


def image_orientation(data: bytes, *, rotation: int = 0) -> int:
    """Return the turn and flip of `decode_image` as an EXIF orientation, 1 to 8.

    Raises:
        ImageDecodeError: the bytes are no picture of a supported format.
    """
    if rotation:
        return _ORIENTATION_OF_TURN[rotation]
    parts = take_apart(data)
    with _translated_errors(), _opened(data, parts):
        return parts.metadata.orientation


def image_size(data: bytes) -> tuple[int, int]:
    """Return the stored width and height in pixels; mostly the first bytes of a file are enough.

    Raises:
        ImageDecodeError: the bytes are not the beginning of a picture of a supported format.
    """
    with _translated_errors(), _opened(data, take_apart(data)) as image:
        return image.size


def decode_image(data: bytes, *, rotation: int = 0, reduction: int = 1) -> Image.Image:
    """Return an upright RGB picture in sRGB, of an animation the first frame.

    Transparent pixels are laid on white.

    Args:
        data: an encoded JPEG, PNG, WebP, GIF, BMP or TIFF.
        rotation: counter-clockwise degrees that make the stored pixels upright, a multiple of 90
            (Open Images' `Rotation` column). Where it is not 0 it takes the place of the EXIF
            orientation: both say the same turn.
        reduction: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, but no smaller than
            1/reduction; other formats always have their full size.

    Raises:
        ImageDecodeError: empty, not a picture, truncated, or over `MAX_PIXELS`; formats whose
            decoders take more memory have a lower limit. Sizes are checked before decoding.
    """
    if not data:
        raise ImageDecodeError("empty file")
    parts = take_apart(data)
    orientation = _ORIENTATION_OF_TURN[rotation] if rotation else parts.metadata.orientation

    with _translated_errors():
        image = _opened(data, parts)
        # Limits before a pixel is decoded: a small file may hold a huge picture.
        _check_size(image, parts.num_copied)
        if reduction > 1:
            width, height = image.size
            image.draft(None, (-(-width // reduction), -(-height // reduction)))

        image = _to_rgb(image, conversion(parts.metadata, image.mode))
        # The decoded picture is freed before the turned copy is made.
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _opened(data: bytes, parts: Parts) -> Image.Image:
    return Image.open(pixel_file(data, parts), formats=list(_EXTENSIONS))


def _check_size(image: Image.Image, num_copied: int) -> None:
    """Raise ImageDecodeError where a picture is too large to decode, or too narrow to be one."""
    width, height = image.size
    sides = getattr(image, "tag_v2", {})
    # A tile is decoded whole, however little of it is shown.
    tile = [side for side in map(sides.get, _TILE_SIDES) if isinstance(side, int)]
    pixels = max(width * height, math.prod(tile) if len(tile) == len(_TILE_SIDES) else 0)

    if pixels > MAX_PIXELS or pixels * _bytes_per_pixel(image) + num_copied > _MAX_DECODED_BYTES:
        raise ImageDecodeError("too many pixels", f"{width}x{height}")
    if max(width, height) > MAX_ASPECT * max(min(width, height), 1):
        raise ImageDecodeError("too narrow", f"{width}x{height}")


def _bytes_per_pixel(image: Image.Image) -> float:
    """Return the decoders' memory at most, measured, with Pillow's own four bytes a pixel."""
    if image.format == "WEBP":
        return 16
    if image.format == "TIFF":  # one strip may hold the whole picture
        return 4 + sum(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) / 8  # type: ignore[attr-defined]
    # A progressive JPEG's coefficients: two bytes of each component.
    return 12 if image.mode == "CMYK" else 10


def _to_rgb(image: Image.Image, to_srgb: ToSrgb | None) -> Image.Image:
    """Return a picture as RGB, converted in bands of rows: a large one is held twice at most."""
    image.load()
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    if rows >= height:
        return _band_to_rgb(image, to_srgb)
    whole = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        whole.paste(_band_to_rgb(image.crop(box), to_srgb), box)
    return whole


def _band_to_rgb(image: Image.Image, to_srgb: ToSrgb | None) -> Image.Image:
    """Return a band as RGB in sRGB, by its mode."""
    if image.mode.startswith("I;16") and (to_srgb is not None or "transparency" in image.info):
        return _deep_gray_to_rgb(np.asarray(image), to_srgb, image.info.get("transparency"))

    # 16 and 32 bits: scale to 8, where Pillow's own conversion would clip.
    if image.mode.startswith(("I", "F")):
        high = 65535 if image.mode.startswith("I") else 1
        image = image.convert("F").point(lambda value: value * (255 / high) + 0).convert("L")
        image = image if to_srgb is None else to_srgb(image)
    elif image.mode in ("RGBA", "RGBa", "LA", "PA", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        # Colors first: white is white in every space, but half of it is not.
        if to_srgb is not None:
            colors = to_srgb(rgba.convert("RGB").convert(to_srgb.mode))
            colors.putalpha(rgba.getchannel("A"))
            rgba = colors
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)

    elif to_srgb is not None:
        return to_srgb(image.convert("RGB") if image.mode == "P" else image)

    return image.convert("RGB")


def _deep_gray_to_rgb(
    values: NDArray[np.uint16], to_srgb: ToSrgb | None, transparent: object
) -> Image.Image:
    """Return 16-bit gray as RGB; the transparent value becomes white."""
    levels = np.repeat(np.arange(65_536)[:, None] // 257, 3, axis=1).astype(np.uint8)
    if to_srgb is not None:
        levels = to_srgb.curve()
    if isinstance(transparent, int) and transparent < len(levels):
        levels[transparent] = 255
    return Image.fromarray(levels[values])


class _translated_errors:
    """Turn everything that Pillow raises on bad input into ImageDecodeError."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        # Broken EXIF blocks and bomb warnings are answered by our own limits and by the ledger.
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._warnings.__exit__(None, None, None)
        if error is None or isinstance(error, ImageDecodeError) or not isinstance(error, Exception):
            return
        if isinstance(error, UnidentifiedImageError):
            raise ImageDecodeError("not a picture") from error
        if isinstance(error, Image.DecompressionBombError):
            raise ImageDecodeError("too many pixels", str(error)) from error
        raise ImageDecodeError("broken picture", f"{type(error).__name__}: {error}") from error
