"""Convert pixels to sRGB, by an ICC profile or by what stands for one in a picture's file."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from rdm.sources.photographs.metadata import Metadata, Primaries

# Of 255: two spaces that differ by no more are one, such as all the profiles that are called sRGB.
_SAME = 2
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # of profiles' color spaces
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x and y of white, red, green, blue
_D50 = (0.9642, 1.0, 0.8249)  # XYZ of the white to which all profiles are adapted
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
# Parameters g, a, b, c, d: (a x + b)^g from d on, c x below.
_CURVES = {
    "srgb": (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    "bt709": (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081),
}


@dataclass(frozen=True, eq=False)
class ToSrgb:
    """A conversion of 8-bit pixels of one mode (L, RGB, CMYK or LAB) to sRGB."""

    mode: str
    transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a picture as RGB; its mode is this one, or L where this one is RGB."""
        if image.mode != self.mode:
            image = image.convert(self.mode)
        # 256 levels of gray are converted once, instead of every pixel.
        if image.mode == "L" and image.height > 1:
            columns = self(Image.fromarray(np.arange(256, dtype=np.uint8)[None])).split()
            return Image.merge("RGB", [image.point(list(column.tobytes())) for column in columns])
        converted = ImageCms.applyTransform(image, self.transform)
        assert converted is not None  # it would be None in place
        return converted

    def fits(self, mode: str) -> bool:
        """Return whether pixels of a Pillow mode fit; a gray profile says nothing of colors."""
        if self.mode == "RGB":
            return mode not in ("CMYK", "LAB", "YCbCr", "HSV")
        if self.mode == "L":
            return mode in ("1", "L", "LA", "La") or mode.startswith(("I", "F"))
        return mode == self.mode

    def curve(self) -> NDArray[np.uint8]:
        """Return the colors of 65,536 levels of gray, uint8 [65536, 3]."""
        # LittleCMS takes 8 bits: between its 256 levels the curve is interpolated.
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        steps = np.asarray(self(ramp), np.float64)[0]
        levels = np.arange(65_536) / 257
        columns = [np.interp(levels, np.arange(256), steps[:, channel]) for channel in range(3)]
        return np.rint(np.stack(columns, axis=1)).astype(np.uint8)


def conversion(metadata: Metadata, mode: str) -> ToSrgb | None:
    """Return the conversion of a mode's pixels to sRGB; None if none is needed, or legible."""
    profile = metadata.profile
    if not profile and metadata.primaries is not None:
        profile = primaries_profile(metadata.primaries)
    found = _lab_to_srgb() if mode == "LAB" else _profile_to_srgb(profile) if profile else None
    return found if found is not None and found.fits(mode) else None


@lru_cache(maxsize=16)
def _profile_to_srgb(profile: bytes) -> ToSrgb | None:
    """Return a profile's conversion; None if it is broken, or changes nothing."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(opened.profile.xcolor_space.strip(), "")  # type: ignore[attr-defined]
        found = _to_srgb(opened, mode) if mode else None
    except (ImageCms.PyCMSError, OSError, ValueError):
        # A broken profile: the pixels are taken as they are.
        return None
    return None if found is None or _is_identity(found) else found


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ToSrgb:
    return _to_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")


def _to_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> ToSrgb:
    target = ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    # What LittleCMS precomputes of a gray scale is wrong by up to seven levels in the shadows.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    return ToSrgb(mode, ImageCms.buildTransform(profile, target, mode, "RGB", intent, flags))


def _is_identity(conversion: ToSrgb) -> bool:
    """Return whether a conversion changes no color by more than two levels."""
    if conversion.mode not in ("L", "RGB"):
        return False

    # All levels of gray, or a grid of colors.
    if conversion.mode == "RGB":
        levels = np.arange(0, 256, 15, np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        pixels = Image.fromarray(grid)
    else:
        pixels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])

    before = np.asarray(pixels.convert("RGB"), np.int16)
    after = np.asarray(conversion(pixels), np.int16)
    return int(np.abs(before - after).max()) <= _SAME


@lru_cache(maxsize=16)
def primaries_profile(primaries: Primaries) -> bytes:
    """Return an ICC profile (version 2) of chromaticities and a curve; b"" where none fits."""
    curve = primaries.curve
    if curve == "srgb" and primaries.chromaticities in ((), _SRGB):
        return b""

    try:
        matrix = _matrix(primaries.chromaticities or _SRGB)
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return b""
    # Numbers that no camera or screen has would only distort.
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > 8:
        return b""

    tags = {b"wtpt": _xyz(_D50), b"desc": _description(), b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    for column, letter in enumerate((b"r", b"g", b"b")):
        tags |= {letter + b"XYZ": _xyz(matrix[:, column].tolist()), letter + b"TRC": _curve(curve)}
    return _icc_file(tags)


def _matrix(chromaticities: Sequence[float]) -> NDArray[np.float64]:
    """Return XYZ of red, green and blue as columns [3, 3], adapted from their white to D50."""
    pairs = np.array(chromaticities, np.float64).reshape(4, 2)
    if (pairs <= 0).any():
        raise ZeroDivisionError

    # From (x, y) to (X, Y, Z) with Y = 1.
    points = np.stack(
        [pairs[:, 0] / pairs[:, 1], np.ones(4), (1 - pairs.sum(axis=1)) / pairs[:, 1]]
    )
    white, primaries = points[:, 0], points[:, 1:]
    # Scale the primaries so that they add up to the white.
    matrix = primaries * np.linalg.solve(primaries, white)

    # Adapt by the responses of the eye's cones (Bradford).
    gains = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ white)
    return np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD @ matrix


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65_536))


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _description() -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)


def _curve(curve: float | str) -> bytes:
    """Return a parametric curve: the named one, or an exponent alone."""
    parameters = _CURVES[curve] if isinstance(curve, str) else (curve,)
    kind = 3 if isinstance(curve, str) else 0
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, parameters))


def _icc_file(tags: dict[bytes, bytes]) -> bytes:
    """Return a profile file: a head of 128 bytes, the table of tags, and their data."""
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)

    size, created = start + len(body), struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    kind = struct.pack(">I4sI4s4s4s", size, b"none", 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    head = kind + created + b"acsp" + bytes(28) + _xyz(_D50)[8:]
    return head.ljust(128, b"\0") + table + body
