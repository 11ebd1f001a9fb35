"""Metadata that decide how a picture is shown: orientation and color space, if they are legible.

Pillow refuses a picture for much of its metadata: text that inflates over a limit, an APP segment
that is too short, a wrong checksum. So it never sees any: it is given a view of the file that holds
the pixels alone, see `containers`.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

Buffer = bytes | memoryview

EXIF_HEAD = b"Exif\0\0"
MAX_TEXT_BYTES = 2**20
"""Bytes of a compressed text that are inflated, and searched for an orientation."""
MAX_PROFILE_BYTES = 2**22
"""Profiles over this size are passed over: printers' have 3 MB, decompression bombs much more."""
_ORIENTATION, _EXIF_IFD, _INTEROP_IFD, _INTEROP_INDEX = 0x0112, 0x8769, 0xA005, 0x0001  # EXIF tags
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([1-8])""")
# Bytes of a value, by EXIF's kinds of numbers and texts.
_SIZE_OF_KIND = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
    16: 8, 17: 8, 18: 8,
}  # fmt: skip


@dataclass(frozen=True)
class Primaries:
    """The color space of a picture without a profile: its chromaticities and its curve.

    Attributes:
        chromaticities: x and y of white, red, green and blue; empty for those of sRGB.
        curve: the exponent that makes stored values linear light; or a name: `srgb`, `bt709`.
    """

    chromaticities: tuple[float, ...] = ()
    curve: float | str = "srgb"


@dataclass(frozen=True)
class Metadata:
    """How to show a picture's pixels.

    Attributes:
        orientation: as EXIF numbers it, 1 to 8; 1 where the file does not say, or not legibly.
        profile: an embedded ICC profile; nothing where there is none.
        primaries: the colors in other words, where the file has no profile.
    """

    orientation: int = 1
    profile: bytes = b""
    primaries: Primaries | None = None


@dataclass(frozen=True)
class Parts:
    """A picture's file taken apart.

    Attributes:
        spans: the pieces that make a file of the pixels alone, in order; empty where the file is
            best read as it is.
        metadata: what else of the file counts.
        num_copied: bytes of the file that its decoder copies, beyond what it copies of any file.
    """

    spans: tuple[Buffer, ...] = ()
    metadata: Metadata = field(default_factory=Metadata)
    num_copied: int = 0


class SplicedBytes(io.RawIOBase):
    """A file of several pieces of memory, none of which is copied."""

    def __init__(self, spans: Sequence[Buffer]) -> None:
        self._spans = [memoryview(span) for span in spans]
        self._ends = list(accumulate(map(len, self._spans)))
        self._size = self._ends[-1] if self._ends else 0
        self._position = self._number = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as of any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the beginning")
        self._position, self._number = base + offset, 0
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the piece at this place; return the number of bytes."""
        while self._number < len(self._spans) and self._ends[self._number] <= self._position:
            self._number += 1
        if self._number == len(self._spans):
            return 0

        span = self._spans[self._number]
        start = self._position - (self._ends[self._number] - len(span))
        target = memoryview(buffer).cast("B")
        piece = span[start : start + len(target)]
        target[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def inflated(data: Buffer, limit: int) -> tuple[bytes, bool]:
    """Return zlib data inflated to at most `limit` bytes, and whether that is all.

    Damaged data give nothing.
    """
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, limit)
    except zlib.error:
        return b"", False
    return found, not inflater.unconsumed_tail


def xmp_orientation(xmp: Buffer) -> int | None:
    """Return the orientation that an XMP packet names, 1 to 8."""
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else None


class Exif:
    """The tags of an EXIF block or of a TIFF file (BigTIFF too), as far as they are legible.

    Attributes:
        order: of bytes, as `struct` writes it.
        is_big: whether offsets have 64 bits.
        first: the place of the first directory.
    """

    def __init__(self, data: Buffer) -> None:
        """Read the header; without a legible one there are no tags."""
        self.data = memoryview(data)
        head = bytes(self.data[:16])
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        has_version = self.order and len(head) >= 4
        version = struct.unpack(f"{self.order}H", head[2:4])[0] if has_version else 0

        # 42 is TIFF with offsets of 32 bits, 43 BigTIFF with 64.
        self.is_big = version == 43
        self.first = 0
        if version in (42, 43) and len(head) >= (16 if self.is_big else 8):
            kind, start = ("Q", 8) if self.is_big else ("I", 4)
            self.first = struct.unpack_from(self.order + kind, head, start)[0]

    @property
    def entry_format(self) -> str:
        """How `struct` reads an entry: number, kind, count, value or place."""
        return self.order + ("HHQ8s" if self.is_big else "HHI4s")

    def entries(self, place: int) -> dict[int, bytes]:
        """Return a directory's entries by tag, as they lie in the file; the first of each tag.

        A directory that is cut short has the entries that are there.
        """
        head = "Q" if self.is_big else "H"
        size, start = struct.calcsize(self.entry_format), place + struct.calcsize(self.order + head)

        if not self.order or place <= 0 or start > len(self.data):
            return {}

        # The count is not believed beyond what the file can hold.
        count = struct.unpack(self.order + head, self.data[place:start])[0]
        found: dict[int, bytes] = {}
        for number in range(min(count, (len(self.data) - start) // size, 65_536)):
            entry = bytes(self.data[start + number * size : start + (number + 1) * size])
            found.setdefault(struct.unpack_from(f"{self.order}H", entry)[0], entry)
        return found

    def value(self, entry: bytes) -> memoryview | None:
        """Return an entry's bytes; None if it is of no known kind or lies outside of the file."""
        _, kind, count, inline = struct.unpack(self.entry_format, entry)
        size = _SIZE_OF_KIND.get(kind, 0) * count
        if kind not in _SIZE_OF_KIND:
            return None

        # Small values stand in the entry itself, in place of their offset.
        if size <= len(inline):
            return memoryview(inline)[:size]

        place = struct.unpack(self.order + ("Q" if self.is_big else "I"), inline)[0]
        return self.data[place : place + size] if place + size <= len(self.data) else None

    def number(self, entries: dict[int, bytes], tag: int) -> int:
        """Return the first whole number of a tag, or 0."""
        value = self.value(entries[tag]) if tag in entries else None
        kind = struct.unpack_from(f"{self.order}H", entries[tag], 2)[0] if value else 0
        letter = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(kind)
        if value is None or letter is None or len(value) < struct.calcsize(self.order + letter):
            return 0
        return int(struct.unpack_from(self.order + letter, value)[0])

    @property
    def orientation(self) -> int | None:
        """The orientation, 1 to 8."""
        found = self.number(self.entries(self.first), _ORIENTATION)
        return found if 1 <= found <= 8 else None

    @property
    def is_adobe_rgb(self) -> bool:
        """Whether a camera says Adobe RGB without a profile: interoperability index R03."""
        details = self.entries(self.number(self.entries(self.first), _EXIF_IFD))
        interop = self.entries(self.number(details, _INTEROP_IFD))
        value = self.value(interop[_INTEROP_INDEX]) if _INTEROP_INDEX in interop else None
        return value is not None and bytes(value[:3]) == b"R03"


ADOBE_RGB = Primaries((0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 2.19921875)


def described(
    exif: Buffer, xmp: Buffer, profile: bytes = b"", primaries: Primaries | None = None
) -> Metadata:
    """Return how to show a picture, from its EXIF block (from the byte order on), XMP and profile.

    EXIF goes before XMP, and a profile before what EXIF says of colors.
    """
    block = Exif(exif)
    orientation = block.orientation or xmp_orientation(xmp) or 1
    if not profile and primaries is None and block.is_adobe_rgb:
        primaries = ADOBE_RGB
    return Metadata(orientation, profile if len(profile) <= MAX_PROFILE_BYTES else b"", primaries)


def without_exif_head(exif: memoryview) -> memoryview:
    """Return an EXIF block from its byte order on, without the head that JPEG puts before it."""
    return exif[len(EXIF_HEAD) :] if bytes(exif[: len(EXIF_HEAD)]) == EXIF_HEAD else exif
