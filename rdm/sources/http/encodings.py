"""HTTP's Content-Encoding: bodies that a server compressed, whether asked to or not."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

# The last ones are servers' mistakes.
_IDENTITY = frozenset({"", "identity", "none", "binary", "8bit", "utf-8"})
_GZIP, _DEFLATE = frozenset({"gzip", "x-gzip"}), frozenset({"deflate", "x-deflate"})
_WITH_HEADER, _RAW = 32 + zlib.MAX_WBITS, -zlib.MAX_WBITS  # zlib's or gzip's header, or neither
_NOT_DECODED = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})
_PIECE_BYTES = 1 << 20
_HEAD_BYTES = 4
# No raw deflate begins like these.
_PICTURES = (b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\x89PNG", b"GIF8", b"\xff\xd8")


class EncodingError(ValueError):
    """A body whose encoding cannot be undone: `cause`, in the ledger's words, and a detail."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause, self.detail = cause, detail
        super().__init__(f"{cause}: {detail}")


class BodyDecoder:
    """Undoes the encodings that a `Content-Encoding` names, in pieces of bounded size.

    A body that is not encoded although the header says so is passed on unchanged: browsers show
    such pictures, too.

    Raises:
        EncodingError: the header names an encoding that nothing here undoes.
    """

    def __init__(self, header: str) -> None:
        names = [name.strip().lower() for name in header.split(",")]
        unknown = next((name for name in names if name in _NOT_DECODED), None)
        if unknown is not None:
            raise EncodingError("unknown encoding", unknown)
        # The header names encodings in the order in which they were applied.
        kinds = [name for name in names if name in _GZIP | _DEFLATE]
        self._stages = [_Inflater(is_gzip=name in _GZIP) for name in reversed(kinds)]

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to undo."""
        return bool(self._stages)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded pieces of the next bytes of the body.

        Raises:
            EncodingError: the body is damaged.
        """
        yield from self._pass(data, 0)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest.

        Raises:
            EncodingError: the body ends too early.
        """
        for number, stage in enumerate(self._stages):
            for piece in stage.finish():
                yield from self._pass(piece, number + 1)

    def _pass(self, data: bytes, number: int) -> Iterator[bytes]:
        """Pass bytes through the stages from this number on."""
        if number == len(self._stages):
            yield data
            return
        for piece in self._stages[number].feed(data):
            yield from self._pass(piece, number + 1)


class _Inflater:
    """Undoes one gzip or deflate; several gzip members after one another are one body."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._head = b""  # of a body that is not yet known to be encoded
        self._inflate: zlib._Decompress | None = None
        self._is_plain = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        # The first bytes decide whether the body is encoded at all.
        if self._inflate is None and not self._is_plain:
            data, self._head = self._head + data, b""
            if len(data) < _HEAD_BYTES:
                self._head = data
                return
            self._begin(data)

        if self._is_plain:
            yield data
            return
        yield from self._decoded(data)

    def finish(self) -> Iterator[bytes]:
        if self._head:  # too short to be a picture
            yield self._head
        elif self._inflate is not None and not self._inflate.eof:
            raise EncodingError("cut short", "compressed body")

    def _begin(self, data: bytes) -> None:
        """Choose the format by the first bytes: gzip, zlib, raw deflate, or no encoding."""
        # Deflate ought to have zlib's header, and often has none.
        has_zlib = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
        if data[:2] == b"\x1f\x8b" or (not self._is_gzip and has_zlib):
            self._inflate = zlib.decompressobj(_WITH_HEADER)
        elif not self._is_gzip and _inflates(data):
            self._inflate = zlib.decompressobj(_RAW)
        else:
            self._is_plain = True

    def _decoded(self, data: bytes) -> Iterator[bytes]:
        """Yield inflated pieces; a body may be several gzip members, one after another."""
        assert self._inflate is not None
        # zlib may hold back output that did not fit into a piece.
        is_pending = False
        while data or is_pending:
            # Bytes behind the last member are no part of the body.
            if self._inflate.eof:
                if data[:1] != b"\x1f":
                    return
                self._inflate = zlib.decompressobj(_WITH_HEADER)

            try:
                piece = self._inflate.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise EncodingError("cut short", "damaged compressed body") from error

            if piece:
                yield piece

            is_pending = len(piece) == _PIECE_BYTES and not self._inflate.eof
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail


def _inflates(data: bytes) -> bool:
    """Return whether bytes look like raw deflate: no picture, and the first of them inflate."""
    if data.startswith(_PICTURES):
        return False
    try:
        zlib.decompressobj(_RAW).decompress(data, 64)
    except zlib.error:
        return False
    return True
