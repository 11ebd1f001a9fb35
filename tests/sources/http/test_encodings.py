from __future__ import annotations

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.sources.http.encodings import BodyDecoder, EncodingError

RIFF, BITMAP = b"RIFF\x24\x10\x00\x00WEBPVP8 ", b"BM\x36\x10\x00\x00\x00\x00"


def decoded(header: str, *chunks: bytes) -> bytes:
    decoder = BodyDecoder(header)
    pieces = [piece for chunk in chunks for piece in decoder.feed(chunk)]
    return b"".join([*pieces, *decoder.finish()])


@given(
    data=st.binary(max_size=3000),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    twice=st.booleans(),
)
def test_body_in_any_chunks_is_decoded(data: bytes, cuts: list[int], twice: bool) -> None:
    body = gzip.compress(zlib.compress(data)) if twice else gzip.compress(data)
    places = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
    chunks = [body[start:end] for start, end in zip(places, places[1:], strict=False)]
    assert decoded("deflate, gzip" if twice else "gzip", *chunks) == data


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "gzip, deflate"]))
def test_any_bytes_are_decoded_or_an_error(data: bytes, header: str) -> None:
    with contextlib.suppress(EncodingError):
        decoded(header, data[:7], data[7:])


@pytest.mark.parametrize(
    "data",
    [
        RIFF,
        BITMAP,
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"II*\0",
        b"MM\0*",
        b"x",
        b"",
    ],
)
@pytest.mark.parametrize("header", ["gzip", "deflate"])
def test_picture_that_is_not_encoded_stays_as_it_is(header: str, data: bytes) -> None:
    assert decoded(header, data) == data
    assert decoded(header, data[:1], data[1:2], data[2:]) == data


def test_large_body_comes_in_bounded_pieces() -> None:
    decoder = BodyDecoder("gzip")
    sizes = [len(piece) for piece in decoder.feed(gzip.compress(bytes(20_000_000)))]
    assert sum(sizes) == 20_000_000
    assert max(sizes) == 1 << 20
    assert list(decoder.finish()) == []
