"""Take a picture's file apart, format by format: the pixels, and what of its metadata decides how they are shown."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO

from rdm.sources.metadata import (
    MAX_PROFILE_BYTES,
    MAX_TEXT_BYTES,
    Exif,
    Metadata,
    Parts,
    Primaries,
    SplicedBytes,
    described,
    inflated,
)

_EXIF_HEAD = b"Exif\0\0"
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_ICC_HEAD = b"ICC_PROFILE\0"


def take_apart(data: bytes) -> Parts:
    """Return the pixels and the metadata of a picture's file; of any other bytes, nothing."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _Png(data).parts()
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"II", b"MM")):
        return _tiff(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    return Parts()


def pixel_file(data: bytes, parts: Parts) -> IO[bytes]:
    """Return a file to decode the pixels from."""
    return io.BufferedReader(SplicedBytes(parts.spans)) if parts.spans else io.BytesIO(data)


def _without_head(exif: memoryview) -> memoryview:
    return exif[len(_EXIF_HEAD) :] if bytes(exif[: len(_EXIF_HEAD)]) == _EXIF_HEAD else exif


# PNG

_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_CHUNK = re.compile(rb"PLTE|tRNS|IDAT|IEND")
_TRANSPARENCY_BYTES = {0: 2, 2: 6}  # least length of tRNS, by color type
# Code points of ITU-T H.273: chromaticities (white, red, green, blue), and curves.
_CICP_PRIMARIES = {
    1: (),
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # DCI-P3
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
_CICP_CURVES = {1: "bt709", 4: 2.2, 5: 2.8, 6: "bt709", 8: 1.0, 13: "srgb", 14: "bt709", 15: "bt709"}


class _Png:
    """A PNG: critical chunks and transparency are kept. Of an animation they make the picture that comes first."""

    def __init__(self, data: bytes) -> None:
        self.view = memoryview(data)
        self.color_type = data[25] if len(data) > 25 else 0
        self.chunks: dict[bytes, memoryview] = {}  # the first of each kind
        self.exif: bytes | memoryview = b""
        self.xmp: bytes | memoryview = b""
        self.profile = b""
        self.num_to_check = 4 * len(data)  # bytes of what may be chunks: bounds the work on a hostile file

    def parts(self) -> Parts:
        kept: list[tuple[int, int]] = []
        for start, end, kind in self._pieces():
            body = self.view[start + 8 : end - 4]
            is_needed = kind == b"tRNS" and len(body) >= _TRANSPARENCY_BYTES.get(self.color_type, 0)
            if not kind or kind[0] & 0x20 == 0 or is_needed:  # critical, or illegible: Pillow says what is wrong
                if kept and kept[-1][1] == start:
                    start = kept.pop()[0]
                kept.append((start, end))
            elif kind in _PNG_TEXTS:
                self._read_text(kind, body)
            else:
                self.chunks.setdefault(kind, body)
        spans = (self.view[:8], *(self.view[start:end] for start, end in kept))
        exif = _without_head(memoryview(self.chunks.get(b"eXIf", self.exif)))
        return Parts(spans, described(exif, self.xmp, *self._colors()))

    def _pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield begin, end and kind of each chunk; what cannot be understood is a last one without a kind."""
        start, size = 8, len(self.view)
        while start + 8 <= size:
            length, kind = struct.unpack(">I4s", self.view[start : start + 8])
            end = start + 12 + length
            if not kind.isalpha():
                break
            if kind[0] & 0x20 and not self._is_chunk(end):
                start = self._next_chunk(start + 8)  # a damaged length
                continue
            yield start, min(end, size), kind
            if kind == b"IEND":
                return
            start = end
        if start < size:
            yield start, size, b""

    def _is_chunk(self, place: int) -> bool:
        return place == len(self.view) or bytes(self.view[place + 4 : place + 8]).isalpha()

    def _next_chunk(self, place: int) -> int:
        """Return where the next chunk begins whose checksum is right."""
        for found in _PNG_CHUNK.finditer(self.view, place + 4):
            start = found.start() - 4
            end = found.end() + struct.unpack(">I", self.view[start : start + 4])[0]
            if end + 4 > len(self.view):
                continue
            self.num_to_check -= end - start
            if self.num_to_check < 0:
                break
            if zlib.crc32(self.view[start + 4 : end]) == struct.unpack(">I", self.view[end : end + 4])[0]:
                return start
        return len(self.view)

    def _read_text(self, kind: bytes, body: memoryview) -> None:
        keyword, separator, _ = bytes(body[:80]).partition(b"\0")
        if not separator or keyword not in _TEXT_READERS:
            return
        rest = body[len(keyword) + 1 :]
        is_compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
        if kind == b"zTXt":
            rest = rest[1:]
        elif kind == b"iTXt":  # two flags, a language and a translated keyword, each ended by a zero
            head = bytes(rest[2:4096]).split(b"\0", 2)
            rest = rest[2 + len(head[0]) + len(head[1]) + 2 :] if len(head) == 3 else rest[:0]
        text = inflated(rest, MAX_TEXT_BYTES)[0] if is_compressed else rest
        _TEXT_READERS[keyword](self, text)

    def _read_xmp(self, text: bytes | memoryview) -> None:
        self.xmp = text

    def _read_raw_profile(self, text: bytes | memoryview) -> None:
        """Read what ImageMagick writes: a name, a length, and hexadecimal digits."""
        digits = b"".join(bytes(text[: 2 * MAX_TEXT_BYTES]).split(b"\n")[3:])
        try:
            block = bytes.fromhex(re.sub(rb"\s", b"", digits).decode("ascii"))
        except ValueError:
            return
        if block.startswith((_EXIF_HEAD, b"II", b"MM")):
            self.exif = block
        elif block[36:40] == b"acsp":
            self.profile = block
        else:
            self.xmp = block

    def _colors(self) -> tuple[bytes, Primaries | None]:
        """Return a profile, or what other chunks say: the more exact first, as the third edition orders them."""
        found = self.chunks.get(b"cICP", b"")
        if len(found) == 4 and found[0] in _CICP_PRIMARIES and found[1] in _CICP_CURVES and found[2:4] == b"\0\1":
            return b"", Primaries(_CICP_PRIMARIES[found[0]], _CICP_CURVES[found[1]])
        packed = memoryview(self.chunks.get(b"iCCP", b""))
        name = bytes(packed[:80]).partition(b"\0")[0]  # a zero ends it, and another says how it is compressed
        profile, is_whole = inflated(packed[len(name) + 2 :], MAX_PROFILE_BYTES)
        if is_whole and profile:
            return profile, None
        if self.profile or b"sRGB" in self.chunks:
            return self.profile, None
        return b"", self._calibration()

    def _calibration(self) -> Primaries | None:
        gamma, chromaticities = self.chunks.get(b"gAMA", b""), self.chunks.get(b"cHRM", b"")
        if len(gamma) != 4:
            return None  # chromaticities alone do not say what the values mean
        exponent = struct.unpack(">I", gamma)[0] / 100_000
        if not 0.2 <= exponent <= 2:
            return None
        # Writers say 1/2.2 where they mean the curve of sRGB, as readers do.
        curve = "srgb" if abs(exponent * 2.2 - 1) < 0.05 else 1 / exponent
        values = struct.unpack(">8I", chromaticities) if len(chromaticities) == 32 else ()
        return Primaries(tuple(value / 100_000 for value in values), curve)


_TEXT_READERS = {
    b"XML:com.adobe.xmp": _Png._read_xmp,
    b"Raw profile type xmp": _Png._read_raw_profile,
    b"Raw profile type exif": _Png._read_raw_profile,
    b"Raw profile type APP1": _Png._read_raw_profile,
    b"Raw profile type icc": _Png._read_raw_profile,
    b"Raw profile type icm": _Png._read_raw_profile,
}


# JPEG

_JPEG_START = re.compile(rb"\xff[\xc0-\xc2\xc4\xdb\xdd\xe0-\xef\xfe]")  # where to go on behind damage
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xfe]")
_APP1_HEAD = re.compile(rb"Exif\0\0|http://ns\.adobe\.com/xap/1\.0/\0")
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


@dataclass
class _Segments:
    """The segments of a JPEG up to its first scan."""

    spans: list[memoryview] = field(default_factory=list)
    app: list[tuple[int, memoryview]] = field(default_factory=list)  # marker and body
    num_pixels: int = 0
    broken_at: int | None = None  # a segment that cannot be read, or does not end where another begins


def _jpeg(data: bytes) -> Parts:
    view, seen = memoryview(data), set[int]()
    found = _segments(view, 2, seen)
    if found.broken_at is not None:
        # Go on behind the damage, with what leads to the largest picture: a thumbnail may lie in the damaged segment.
        best, start = None, 0
        for match in _JPEG_START.finditer(view, found.broken_at + 2):
            chain = _segments(view, match.start(), seen)
            if chain.broken_at is None and (best is None or chain.num_pixels > best.num_pixels):
                best, start = chain, match.start()
        if best is None:
            return Parts()
        damaged = view[found.broken_at : start]
        legible = [(0xE1, damaged[match.start() :]) for match in _APP1_HEAD.finditer(damaged)]
        found = replace(best, spans=[*found.spans, *best.spans], app=[*found.app, *legible, *best.app])
    return Parts((view[:2], *found.spans), _jpeg_metadata(found.app))


def _segments(view: memoryview, place: int, seen: set[int]) -> _Segments:
    """Walk from one marker to the next, up to the first scan. `seen` has the places where walks were, and gets these.

    A walk ends as broken where another one was: each place of a file is seen once.
    """
    found = _Segments()
    while True:
        while view[place : place + 2] == b"\xff\xff":  # fill bytes
            place += 1
        head, is_new = bytes(view[place : place + 4]), place not in seen
        seen.add(place)
        if not is_new or len(head) < 4 or not _JPEG_MARKER.match(head) or 0xD0 <= head[1] < 0xDA:
            break
        marker, end = head[1], place + 2 + int.from_bytes(head[2:])
        if marker == 0xDA and found.num_pixels:
            found.spans.append(view[place:])
            return found
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        found.spans += _color_segment(view[place:])
        if end < place + 4 or end >= len(view) or (is_metadata and view[end] != 0xFF):
            break
        body = view[place + 4 : end]
        if is_metadata:
            found.app.append((marker, body))
        elif marker in _FRAMES and len(body) >= 6:
            found.num_pixels = int.from_bytes(body[1:3]) * int.from_bytes(body[3:5])
        if not is_metadata:
            found.spans.append(view[place:end])
        following = _JPEG_MARKER.search(view, end)  # bytes of no segment are passed over, as libjpeg does
        place = following.start() if following else len(view)
    found.broken_at = place
    return found


def _color_segment(segment: memoryview) -> list[memoryview]:
    """Return a segment that says which colors the components are: JFIF's or Adobe's, without what may follow there."""
    for head, name, size in ((b"\xff\xe0", b"JFIF\0", 14), (b"\xff\xee", b"Adobe", 12)):
        if bytes(segment[:2]) == head and bytes(segment[4:9]) == name and len(segment) >= 4 + size:
            return [memoryview(head + (2 + size).to_bytes(2)), segment[4 : 4 + size]]
    return []


def _jpeg_metadata(app: list[tuple[int, memoryview]]) -> Metadata:
    exif, xmp, pieces = b"", memoryview(b""), {}
    for marker, body in app:
        if marker == 0xE1 and bytes(body[:6]) == _EXIF_HEAD:
            exif += bytes(body[6:]) if len(exif) < MAX_TEXT_BYTES else b""  # a block may go on in the next segment
        elif marker == 0xE1 and bytes(body[: len(_XMP_HEAD)]) == _XMP_HEAD:
            xmp = body[len(_XMP_HEAD) :]
        elif marker == 0xE2 and bytes(body[:12]) == _ICC_HEAD and len(body) > 14:
            pieces.setdefault(body[12], (body[13], body[14:]))
    profile = b""
    if pieces and sorted(pieces) == list(range(1, pieces[min(pieces)][0] + 1)):
        profile = b"".join(pieces[number][1] for number in sorted(pieces))
    return described(exif, xmp, profile)


# WebP

_WEBP_PIXELS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})


def _webp(data: bytes) -> Parts:
    view, place = memoryview(data), 12
    spans, found = [], {b"ICCP": b"", b"EXIF": memoryview(b""), b"XMP ": memoryview(b"")}
    while place + 8 <= len(view):
        kind, length = struct.unpack("<4sI", view[place : place + 8])
        end = place + 8 + length + length % 2
        if kind in _WEBP_PIXELS:
            if place + 8 + length > len(view):
                return Parts()  # cut short: Pillow says so
            spans.append(view[place:end])
            if end > len(view):
                spans.append(b"\0")
        elif kind in found:
            found[kind] = view[place + 8 : place + 8 + length]
        place = end
    head = b"RIFF" + struct.pack("<I", 4 + sum(map(len, spans))) + b"WEBP"
    profile = bytes(found[b"ICCP"][: MAX_PROFILE_BYTES + 1])
    return Parts((head, *spans), described(_without_head(memoryview(found[b"EXIF"])), found[b"XMP "], profile))


# TIFF

# Sizes, samples, compression, strips, tiles, palettes and what decoders of JPEG and of fax codes need.
_TIFF_PIXELS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 297, 317, 318, 319, 320, 322, 323}
    | {324, 325, 332, 334, 336, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532, 32995, 32996}
)
_COMPRESSION, _XMP_TAG, _ICC_TAG = 259, 700, 34675
_UNCOMPRESSED = 1


def _tiff(data: bytes) -> Parts:
    """Take a TIFF apart: its first directory is written anew behind the file, with what tells the pixels."""
    tags = Exif(data)
    entries = tags.entries(tags.first)
    if not entries:
        return Parts()
    profile, xmp = (tags.value(entries[tag]) if tag in entries else None for tag in (_ICC_TAG, _XMP_TAG))
    metadata = described(data, xmp or b"", bytes(profile[: MAX_PROFILE_BYTES + 1]) if profile else b"")
    kept = b"".join(entries[tag] for tag in sorted(_TIFF_PIXELS & entries.keys()))
    count = len(kept) // struct.calcsize(tags.entry_format)
    directory = struct.pack(tags.order + ("Q" if tags.is_big else "H"), count) + kept + bytes(8)
    start = len(data) + len(data) % 2
    place = struct.pack(tags.order + ("Q" if tags.is_big else "I"), start)
    head = 8 if tags.is_big else 4
    view = memoryview(data)
    spans = (view[:head], place, view[head + len(place) :], bytes(start - len(data)), directory)
    is_copied = tags.number(entries, _COMPRESSION) > _UNCOMPRESSED  # libtiff wants it in one piece
    return Parts(spans, metadata, len(data) if is_copied else 0)


# GIF and BMP


def _gif(data: bytes) -> Parts:
    """Leave out the extensions before the first frame, but for the one that says what is transparent."""
    view = memoryview(data)
    if len(view) < 13:
        return Parts()
    place = 13 + (3 << (view[10] & 7) + 1 if view[10] & 0x80 else 0)
    spans, profile = [view[:place]], b""
    while view[place : place + 1] == b"\x21":
        blocks, end = [], place + 2
        while end < len(view) and view[end]:
            blocks.append(view[end + 1 : end + 1 + view[end]])
            end += 1 + view[end]
        if view[place + 1 : place + 2] == b"\xf9":
            spans.append(view[place : end + 1])
        elif blocks and bytes(blocks[0]) == b"ICCRGBG1012":
            profile = b"".join(blocks[1:])
        place = end + 1
    return Parts((*spans, view[place:]), described(b"", b"", profile))


def _bmp(data: bytes) -> Parts:
    """Find the profile that a header of version 5 embeds."""
    if len(data) < 138 or data[14:18] != struct.pack("<I", 124) or data[70:74] != b"DEBM":
        return Parts()
    start, size = struct.unpack_from("<II", data, 126)
    return Parts(metadata=described(b"", b"", data[14 + start : 14 + start + min(size, MAX_PROFILE_BYTES + 1)]))
