"""Decode untrusted pictures to upright 8-bit RGB, within limits."""

from __future__ import annotations

import io
import math
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 120_000_000
MAX_ASPECT = 200
_BAND_PIXELS = 4_000_000
_MAX_DECODED_BYTES = 10 * MAX_PIXELS
_BITS_PER_SAMPLE, _TILE_SIDES = 258, (322, 323)  # TIFF tags
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
_ORIENTATION = 0x0112  # the EXIF tag
_ORIENTATION_OF_TURN = {90: 8, 180: 3, 270: 6}  # counter-clockwise degrees as an EXIF orientation
_FORMATS = [name for name in _EXTENSIONS if name != "MPO"]  # Pillow opens MPO files as JPEG, then calls them MPO
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo")
IMAGE_SUFFIXES = frozenset({*_JPEG_SUFFIXES, ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


class ImageDecodeError(ValueError):
    """A picture that cannot be used; `reason` is a short, countable cause."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)

    def __reduce__(self) -> tuple[object, ...]:
        return (ImageDecodeError, (self.reason, self.detail))


def image_extension(data: bytes) -> str:
    """Return the file ending that belongs to a picture's bytes (`jpg`, `png`, ...); no pixel is decoded.

    Raises:
        ImageDecodeError: the bytes are no picture of a supported format.
    """
    with _translated_errors(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return _EXTENSIONS[image.format or ""]


def image_orientation(data: bytes, *, rotation: int = 0) -> int:
    """Return the turn and flip that `decode_image` makes a picture upright by, as an EXIF orientation, 1 to 8.

    Raises:
        ImageDecodeError: the bytes are no picture of a supported format.
    """
    if rotation:
        return _ORIENTATION_OF_TURN[rotation]
    with _translated_errors(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        found = image.getexif().get(_ORIENTATION, 1)
        return found if found in range(1, 9) else 1


def decode_image(data: bytes, *, rotation: int = 0, reduction: int = 1) -> Image.Image:
    """Return an upright RGB picture; of an animation, the first frame; transparency is laid on white.

    Args:
        data: an encoded JPEG, PNG, WebP, GIF, BMP or TIFF.
        rotation: counter-clockwise degrees that make the stored pixels upright, a multiple of 90 (Open Images'
            `Rotation` column). Where it is not 0 it takes the place of the EXIF orientation: both tell the same turn.
        reduction: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, but no smaller than 1/reduction; other
            formats always have their full size.

    Raises:
        ImageDecodeError: empty, not a picture, truncated, or over `MAX_PIXELS`, of a kind that is decoded in more
            memory than others over a part of it (checked before decoding).
    """
    if not data:
        raise ImageDecodeError("empty file")
    with _translated_errors():
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(image)
        if reduction > 1:
            width, height = image.size
            image.draft(None, (-(-width // reduction), -(-height // reduction)))
        if not rotation:
            ImageOps.exif_transpose(image, in_place=True)  # loads it, and keeps no second copy
            return _to_rgb(image)
        image = _to_rgb(image)  # what was decoded goes before the turned copy is made
        return image.rotate(rotation, expand=True)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    sides = getattr(image, "tag_v2", {})
    tile = [side for side in map(sides.get, _TILE_SIDES) if isinstance(side, int)]  # a whole one is decoded
    pixels = max(width * height, math.prod(tile) if len(tile) == len(_TILE_SIDES) else 0)
    if pixels > MAX_PIXELS or pixels * _bytes_per_pixel(image) > _MAX_DECODED_BYTES:
        raise ImageDecodeError("too many pixels", f"{width}x{height}")
    if max(width, height) > MAX_ASPECT * max(min(width, height), 1):
        raise ImageDecodeError("too narrow", f"{width}x{height}")


def _bytes_per_pixel(image: Image.Image) -> float:
    """Return how much memory the decoders take at most, as measured, Pillow's own four bytes of a pixel included."""
    if image.format == "WEBP":
        return 16
    if image.format == "TIFF":  # one strip may hold the whole picture
        return 4 + sum(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) / 8  # type: ignore[attr-defined]
    return 12 if image.mode == "CMYK" else 10  # a progressive JPEG's coefficients: two bytes of each component


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as RGB, converted in bands of rows: a large one is held twice at most."""
    image.load()
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    if rows >= height:
        return _band_to_rgb(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        band = _band_to_rgb(image.crop(box))
        whole.paste(band, box)
        whole.info = band.info
    return whole


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits: scale to 8, where PIL's own conversion would clip
        high = 65535 if image.mode.startswith("I") else 1
        image = image.convert("F").point(lambda value: value * (255 / high) + 0).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


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
