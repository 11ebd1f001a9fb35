"""Take a picture's file apart, by format: its pixels, and the metadata that tell how to show them.

Pillow gets a file of the pixels alone: metadata that are damaged or too large cost no picture.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, field, replace
from typing import IO

from rdm.sources.photographs.metadata import (
    EXIF_HEAD,
    MAX_PROFILE_BYTES,
    MAX_TEXT_BYTES,
    Exif,
    Metadata,
    Parts,
    SplicedBytes,
    described,
    without_exif_head,
)
from rdm.sources.photographs.png import PngFile

_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_ICC_HEAD = b"ICC_PROFILE\0"


def take_apart(data: bytes) -> Parts:
    """Return the pixels and the metadata of a picture's file; of any other bytes, nothing."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngFile(data).parts()
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


# JPEG

# Markers at which a walk may go on behind damage.
_JPEG_START = re.compile(rb"\xff[\xc0-\xc2\xc4\xdb\xdd\xe0-\xef\xfe]")
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xfe]")
_APP1_HEAD = re.compile(rb"Exif\0\0|http://ns\.adobe\.com/xap/1\.0/\0")
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


@dataclass
class _Segments:
    """The segments of a JPEG up to its first scan."""

    spans: list[memoryview] = field(default_factory=list)
    app: list[tuple[int, memoryview]] = field(default_factory=list)  # marker and body
    num_pixels: int = 0
    broken_at: int | None = None
    """Place of a segment that cannot be read, or does not end where another begins."""


def _jpeg(data: bytes) -> Parts:
    """Take a JPEG apart, and pass over a damaged segment."""
    view, seen = memoryview(data), set[int]()
    found = _segments(view, 2, seen)

    # Go on behind the damage with the walk to the largest picture, since a thumbnail may lie in it.
    if found.broken_at is not None:
        best, start = None, 0
        for match in _JPEG_START.finditer(view, found.broken_at + 2):
            chain = _segments(view, match.start(), seen)
            if chain.broken_at is None and (best is None or chain.num_pixels > best.num_pixels):
                best, start = chain, match.start()

        if best is None:
            return Parts()

        # EXIF and XMP that begin within the damage are still tried.
        damaged = view[found.broken_at : start]
        legible = [(0xE1, damaged[match.start() :]) for match in _APP1_HEAD.finditer(damaged)]
        found = replace(
            best, spans=[*found.spans, *best.spans], app=[*found.app, *legible, *best.app]
        )

    return Parts((view[:2], *found.spans), _jpeg_metadata(found.app))


def _segments(view: memoryview, place: int, seen: set[int]) -> _Segments:
    """Walk from marker to marker up to the first scan; `seen` collects the places of all walks.

    A walk ends as broken where another one was: each place of a file is seen once.
    """
    found = _Segments()

    while True:
        # Fill bytes may stand before any marker.
        while view[place : place + 2] == b"\xff\xff":
            place += 1
        head, is_new = bytes(view[place : place + 4]), place not in seen
        seen.add(place)

        if not is_new or len(head) < 4 or not _JPEG_MARKER.match(head) or 0xD0 <= head[1] < 0xDA:
            break

        marker, end = head[1], place + 2 + int.from_bytes(head[2:])
        # The scan ends the walk: everything from here on is pixels.
        if marker == 0xDA and found.num_pixels:
            found.spans.append(view[place:])
            return found
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE

        # Metadata must end where another marker begins; other segments only within the file.
        found.spans += _color_segment(view[place:])
        if end < place + 4 or end >= len(view) or (is_metadata and view[end] != 0xFF):
            break

        # Keep what the decoder needs, and remember the size.
        body = view[place + 4 : end]
        if is_metadata:
            found.app.append((marker, body))
        elif marker in _FRAMES and len(body) >= 6:
            found.num_pixels = int.from_bytes(body[1:3]) * int.from_bytes(body[3:5])
        if not is_metadata:
            found.spans.append(view[place:end])

        # Bytes of no segment are passed over, as in libjpeg.
        following = _JPEG_MARKER.search(view, end)
        place = following.start() if following else len(view)
    found.broken_at = place
    return found


def _color_segment(segment: memoryview) -> list[memoryview]:
    """Return the segment of JFIF or Adobe that names the components, without what may follow."""
    for head, name, size in ((b"\xff\xe0", b"JFIF\0", 14), (b"\xff\xee", b"Adobe", 12)):
        if bytes(segment[:2]) == head and bytes(segment[4:9]) == name and len(segment) >= 4 + size:
            return [memoryview(head + (2 + size).to_bytes(2)), segment[4 : 4 + size]]
    return []


def _jpeg_metadata(app: list[tuple[int, memoryview]]) -> Metadata:
    """Read orientation and colors from the APP segments."""
    exif, xmp, pieces = b"", memoryview(b""), {}
    for marker, body in app:
        if marker == 0xE1 and bytes(body[:6]) == EXIF_HEAD:
            # A large block goes on in the next segment.
            exif += bytes(body[6:]) if len(exif) < MAX_TEXT_BYTES else b""
        elif marker == 0xE1 and bytes(body[: len(_XMP_HEAD)]) == _XMP_HEAD:
            xmp = body[len(_XMP_HEAD) :]
        elif marker == 0xE2 and bytes(body[:12]) == _ICC_HEAD and len(body) > 14:
            pieces.setdefault(body[12], (body[13], body[14:]))

    # A profile is split into numbered pieces, of which none may be missing.
    profile = b""
    if pieces and sorted(pieces) == list(range(1, pieces[min(pieces)][0] + 1)):
        profile = b"".join(pieces[number][1] for number in sorted(pieces))
    return described(exif, xmp, profile)


# WebP

_WEBP_PIXELS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})


def _webp(data: bytes) -> Parts:
    """Take a WebP apart: chunks of pixels are kept, three kinds of metadata are read."""
    view, place = memoryview(data), 12
    spans, found = [], {b"ICCP": b"", b"EXIF": memoryview(b""), b"XMP ": memoryview(b"")}

    while place + 8 <= len(view):
        # A chunk: its kind, its length, and a byte of padding after an odd length.
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

    # The head of the new file counts what was kept.
    head = b"RIFF" + struct.pack("<I", 4 + sum(map(len, spans))) + b"WEBP"
    profile = bytes(found[b"ICCP"][: MAX_PROFILE_BYTES + 1])
    return Parts(
        (head, *spans),
        described(without_exif_head(memoryview(found[b"EXIF"])), found[b"XMP "], profile),
    )


# TIFF

# Sizes, samples, compression, strips, tiles, palettes; what decoders of JPEG and fax codes need.
_TIFF_PIXELS = frozenset({
    254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 297,
    317, 318, 319, 320, 322, 323, 324, 325, 332, 334, 336, 338, 339, 340, 341, 347,
    *range(512, 522), 529, 530, 531, 532, 32995, 32996,
})  # fmt: skip
_COMPRESSION, _XMP_TAG, _ICC_TAG = 259, 700, 34675
_UNCOMPRESSED = 1


def _tiff(data: bytes) -> Parts:
    """Take a TIFF apart: write its first directory anew behind the file, with the pixels' tags."""
    tags = Exif(data)
    entries = tags.entries(tags.first)

    if not entries:
        return Parts()

    profile, xmp = (
        tags.value(entries[tag]) if tag in entries else None for tag in (_ICC_TAG, _XMP_TAG)
    )
    metadata = described(
        data, xmp or b"", bytes(profile[: MAX_PROFILE_BYTES + 1]) if profile else b""
    )

    # A directory of the kept entries: their number, the entries, and no next directory.
    kept = b"".join(entries[tag] for tag in sorted(_TIFF_PIXELS & entries.keys()))
    count = len(kept) // struct.calcsize(tags.entry_format)
    directory = struct.pack(tags.order + ("Q" if tags.is_big else "H"), count) + kept + bytes(8)

    # It goes to an even place behind the file, and the file's head points there.
    start = len(data) + len(data) % 2
    place = struct.pack(tags.order + ("Q" if tags.is_big else "I"), start)
    head = 8 if tags.is_big else 4

    view = memoryview(data)
    spans = (view[:head], place, view[head + len(place) :], bytes(start - len(data)), directory)
    is_copied = tags.number(entries, _COMPRESSION) > _UNCOMPRESSED  # libtiff wants it in one piece
    return Parts(spans, metadata, len(data) if is_copied else 0)


# GIF and BMP


def _gif(data: bytes) -> Parts:
    """Leave out the extensions before the first frame, except for transparency."""
    view = memoryview(data)
    if len(view) < 13:
        return Parts()
    # The global color table follows the head, if there is one.
    place = 13 + (3 << (view[10] & 7) + 1 if view[10] & 0x80 else 0)
    spans, profile = [view[:place]], b""

    while view[place : place + 1] == b"\x21":
        # An extension is a chain of blocks, ended by an empty one.
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
    """Read the profile that a header of version 5 embeds; the file is decoded as it is."""
    if len(data) < 138 or data[14:18] != struct.pack("<I", 124) or data[70:74] != b"DEBM":
        return Parts()

    start, size = struct.unpack_from("<II", data, 126)
    return Parts(
        metadata=described(
            b"", b"", data[14 + start : 14 + start + min(size, MAX_PROFILE_BYTES + 1)]
        )
    )
