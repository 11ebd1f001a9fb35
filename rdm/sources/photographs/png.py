"""PNG: the chunks of the pixels, and what the others say of orientation and colors."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from rdm.sources.photographs.metadata import (
    EXIF_HEAD,
    MAX_PROFILE_BYTES,
    MAX_TEXT_BYTES,
    Parts,
    Primaries,
    described,
    inflated,
    without_exif_head,
)

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
_CICP_CURVES = {
    1: "bt709", 4: 2.2, 5: 2.8, 6: "bt709", 8: 1.0, 13: "srgb", 14: "bt709", 15: "bt709",
}  # fmt: skip


class PngFile:
    """A PNG; its critical chunks and transparency are kept: of an animation, the first picture."""

    def __init__(self, data: bytes) -> None:
        self.view = memoryview(data)
        self.color_type = data[25] if len(data) > 25 else 0
        self.chunks: dict[bytes, memoryview] = {}  # the first of each kind
        self.exif: bytes | memoryview = b""
        self.xmp: bytes | memoryview = b""
        self.profile = b""
        # Bytes of possible chunks that may be checked: bounds the work on a hostile file.
        self.num_to_check = 4 * len(data)

    def parts(self) -> Parts:
        """Return the file taken apart."""
        kept: list[tuple[int, int]] = []

        # Chunks that follow one another make one span.
        for start, end, kind in self._pieces():
            body = self.view[start + 8 : end - 4]
            is_needed = kind == b"tRNS" and len(body) >= _TRANSPARENCY_BYTES.get(self.color_type, 0)
            # Critical chunks have a capital first letter; Pillow says what is wrong with others.
            if not kind or kind[0] & 0x20 == 0 or is_needed:
                if kept and kept[-1][1] == start:
                    start = kept.pop()[0]
                kept.append((start, end))
            elif kind in _PNG_TEXTS:
                self._read_text(kind, body)
            else:
                self.chunks.setdefault(kind, body)

        spans = (self.view[:8], *(self.view[start:end] for start, end in kept))
        exif = without_exif_head(memoryview(self.chunks.get(b"eXIf", self.exif)))
        return Parts(spans, described(exif, self.xmp, *self._colors()))

    def _pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield begin, end and kind of each chunk; an illegible rest is a last one without kind."""
        start, size = 8, len(self.view)
        while start + 8 <= size:
            length, kind = struct.unpack(">I4s", self.view[start : start + 8])
            end = start + 12 + length

            if not kind.isalpha():
                break

            # A chunk of metadata may lie about its length; then the next sound chunk is looked for.
            if kind[0] & 0x20 and not self._is_chunk(end):
                start = self._next_chunk(start + 8)
                continue

            yield start, min(end, size), kind
            if kind == b"IEND":
                return
            start = end
        if start < size:
            yield start, size, b""

    def _is_chunk(self, place: int) -> bool:
        """Return whether a chunk may begin here, or the file ends."""
        return place == len(self.view) or bytes(self.view[place + 4 : place + 8]).isalpha()

    def _next_chunk(self, place: int) -> int:
        """Return the place of the next chunk with the right checksum."""
        for found in _PNG_CHUNK.finditer(self.view, place + 4):
            start = found.start() - 4
            end = found.end() + struct.unpack(">I", self.view[start : start + 4])[0]
            if end + 4 > len(self.view):
                continue

            self.num_to_check -= end - start
            if self.num_to_check < 0:
                break
            checksum = struct.unpack(">I", self.view[end : end + 4])[0]
            if zlib.crc32(self.view[start + 4 : end]) == checksum:
                return start
        return len(self.view)

    def _read_text(self, kind: bytes, body: memoryview) -> None:
        """Read a text chunk whose keyword means something here."""
        keyword, separator, _ = bytes(body[:80]).partition(b"\0")
        if not separator or keyword not in _TEXT_READERS:
            return

        rest = body[len(keyword) + 1 :]
        is_compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")

        # iTXt has two flags, a language and a translated keyword, the last two ended by a zero
        # each.
        if kind == b"zTXt":
            rest = rest[1:]
        elif kind == b"iTXt":
            head = bytes(rest[2:4096]).split(b"\0", 2)
            rest = rest[2 + len(head[0]) + len(head[1]) + 2 :] if len(head) == 3 else rest[:0]

        text = inflated(rest, MAX_TEXT_BYTES)[0] if is_compressed else rest
        _TEXT_READERS[keyword](self, text)

    def _read_xmp(self, text: bytes | memoryview) -> None:
        self.xmp = text

    def _read_raw_profile(self, text: bytes | memoryview) -> None:
        """Read ImageMagick's raw profile: a name, a length, and hexadecimal digits."""
        digits = b"".join(bytes(text[: 2 * MAX_TEXT_BYTES]).split(b"\n")[3:])
        try:
            block = bytes.fromhex(re.sub(rb"\s", b"", digits).decode("ascii"))
        except ValueError:
            return

        if block.startswith((EXIF_HEAD, b"II", b"MM")):
            self.exif = block
        elif block[36:40] == b"acsp":
            self.profile = block
        else:
            self.xmp = block

    def _colors(self) -> tuple[bytes, Primaries | None]:
        """Return a profile, or what stands for it: the most exact, in the third edition's order."""
        found = self.chunks.get(b"cICP", b"")
        is_known = len(found) == 4 and found[0] in _CICP_PRIMARIES and found[1] in _CICP_CURVES
        if is_known and found[2:4] == b"\0\1":
            return b"", Primaries(_CICP_PRIMARIES[found[0]], _CICP_CURVES[found[1]])

        # iCCP: a name, which a zero ends, a byte for the compression, and the profile.
        packed = memoryview(self.chunks.get(b"iCCP", b""))
        name = bytes(packed[:80]).partition(b"\0")[0]
        profile, is_whole = inflated(packed[len(name) + 2 :], MAX_PROFILE_BYTES)
        if is_whole and profile:
            return profile, None

        if self.profile or b"sRGB" in self.chunks:
            return self.profile, None
        return b"", self._calibration()

    def _calibration(self) -> Primaries | None:
        """Return the primaries that gAMA and cHRM tell; None without a plausible gamma."""
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
    b"XML:com.adobe.xmp": PngFile._read_xmp,
    b"Raw profile type xmp": PngFile._read_raw_profile,
    b"Raw profile type exif": PngFile._read_raw_profile,
    b"Raw profile type APP1": PngFile._read_raw_profile,
    b"Raw profile type icc": PngFile._read_raw_profile,
    b"Raw profile type icm": PngFile._read_raw_profile,
}
