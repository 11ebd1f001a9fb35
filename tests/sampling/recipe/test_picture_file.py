from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from written_recipe import recipe

from rdm.errors import SourceError
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.recipe.picture_file import RECIPE_KEY, XMP_KEY, png_bytes, read_picture
from rdm.sampling.recipe.record import SampleRecord

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def written(path: Path, record: SampleRecord) -> Path:
    path.write_bytes(png_bytes(PIXELS, record))
    return path


def chunks(data: bytes) -> list[tuple[str, bytes]]:
    """Return type and content of each chunk of a PNG, read by the format's own rules."""
    found, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (crc,) = struct.unpack_from(">I", data, place + 8 + length)
        assert crc == zlib.crc32(kind + content)
        found.append((kind.decode(), content))
        place += 12 + length
    return found


def test_a_picture_carries_its_recipe_and_its_pixels(tmp_path: Path) -> None:
    pixels, found, _ = read_picture(written(tmp_path / "a.png", recipe()))
    assert found == recipe()
    assert np.array_equal(pixels, PIXELS)


def test_the_texts_are_not_compressed_and_stand_in_order_before_the_pixels() -> None:
    kinds = [(kind, data) for kind, data in chunks(png_bytes(PIXELS, recipe()))]
    texts = [data for kind, data in kinds if kind == "iTXt"]
    assert [kind for kind, _ in kinds] == ["IHDR", "iTXt", "iTXt", "IDAT", "IEND"]
    for text, key in zip(texts, (RECIPE_KEY, XMP_KEY), strict=True):
        keyword, _, rest = text.partition(b"\0")
        assert keyword.decode() == key
        # compression flag and method, then two empty names of the language
        assert rest[:4] == b"\0\0\0\0"


def test_equal_pictures_have_equal_files() -> None:
    assert png_bytes(PIXELS, recipe()) == png_bytes(PIXELS.copy(), recipe())


def test_a_picture_with_credits_alone_says_nothing_of_what_was_asked() -> None:
    data = png_bytes(PIXELS, recipe(query={"kind": "text", "label": "my secret owl"}), "credits")
    assert b"secret" not in data
    assert "Zoë 写".encode() in data


def test_the_digest_is_of_the_pixels_alone(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "other.png", compress_level=1)
    with Image.open(tmp_path / "other.png") as image:
        assert pixels_digest(np.asarray(image)) == pixels_digest(PIXELS)
    assert pixels_digest(PIXELS[::-1]) != pixels_digest(PIXELS)


def test_a_picture_of_another_program_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match="carries no record"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    "text", ['{"seed": 1}', "", "[]", '{"format": "rdm.recipe/2"}', "\ud7ff" * 9]
)
def test_a_damaged_recipe_is_refused(tmp_path: Path, text: str) -> None:
    info = PngInfo()
    info.add_itxt(RECIPE_KEY, text)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(SourceError, match="record is damaged"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"words", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_what_is_no_png_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SourceError, match="cannot be read as a PNG"):
        read_picture(tmp_path / "a.png")


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read_picture(tmp_path / "a.png")
