from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rdm.sources import ImageDecodeError, decode_image
from rdm.sources.photographs import decode
from rdm.sources.photographs.decode import MAX_ASPECT, image_extension


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a size that its data does not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("kind", "extension"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
    ],
)
def test_formats_decode_to_rgb_and_have_an_extension(
    picture: Callable[..., Image.Image], kind: str, extension: str
) -> None:
    data = encode(picture(0), kind)
    assert (decode_image(data).mode, decode_image(data).size) == ("RGB", (48, 40))
    assert image_extension(data) == extension


def test_stereo_jpeg_is_a_jpeg(picture: Callable[..., Image.Image]) -> None:
    data = encode(picture(0), "MPO", save_all=True, append_images=[picture(1)])
    assert image_extension(data) == "jpg"
    np.testing.assert_array_equal(
        np.asarray(decode_image(data)), np.asarray(decode_image(encode(picture(0), "JPEG")))
    )


def test_lossless_pixels_are_unchanged(picture: Callable[..., Image.Image]) -> None:
    np.testing.assert_array_equal(
        np.asarray(decode_image(encode(picture(0), "PNG"))), np.asarray(picture(0))
    )


# What a viewer does with each EXIF orientation, as numpy operations on rows and columns.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(picture: Callable[..., Image.Image], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(1), "PNG", exif=exif)
    np.testing.assert_array_equal(
        np.asarray(decode_image(data)), UPRIGHT[orientation](np.asarray(picture(1)))
    )


def test_broken_exif_does_not_cost_the_picture(picture: Callable[..., Image.Image]) -> None:
    data = encode(picture(1), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert decode_image(data).size == (48, 40)


def test_rotation_turns_counterclockwise(picture: Callable[..., Image.Image]) -> None:
    turned = decode_image(encode(picture(1), "PNG"), rotation=90)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(picture(1))))


def test_cmyk_is_converted() -> None:
    color = decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel(
        (4, 4)
    )
    assert color == pytest.approx((255, 0, 0), abs=4)


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values), "PNG")))
    np.testing.assert_allclose(decoded[0, :, 0], [0, 1, 128, 255], atol=1)


def test_sixteen_bit_gray_with_transparency_decodes() -> None:
    values = np.array([[0, 65535], [30000, 30000]], np.uint16)
    assert decode_image(encode(Image.fromarray(values), "PNG", transparency=30000)).mode == "RGB"


def test_float_tiff_is_scaled() -> None:
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    np.testing.assert_allclose(
        np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")))[0, :, 0],
        [0, 127.5, 255],
        atol=1,
    )


def test_transparent_palette_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    decoded = decode_image(encode(image, "PNG", transparency=0))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_modes_become_rgb(mode: str, color: object, expected: tuple[int, ...]) -> None:
    image = Image.new(mode, (2, 2), color)  # type: ignore[arg-type]
    assert decode_image(encode(image, "PNG")).getpixel((0, 0)) == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encode(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    assert decode_image(data).getpixel((3, 3)) == (255, 0, 0)


def test_one_pixel_is_a_picture() -> None:
    assert decode_image(encode(Image.new("RGB", (1, 1), "red"), "PNG")).size == (1, 1)


def test_greatest_aspect_is_accepted_and_more_is_not() -> None:
    assert decode_image(encode(Image.new("RGB", (MAX_ASPECT, 1)), "PNG")).size == (MAX_ASPECT, 1)
    with pytest.raises(ImageDecodeError, match="too narrow"):
        decode_image(encode(Image.new("RGB", (1, MAX_ASPECT + 1)), "PNG"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"these are words", "not a picture"),
        (b"\xff\xd8\xff", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not a picture"),
        (png_of_size(0, 0), "not a picture"),
        (png_of_size(12_000, 10_001), "too many pixels"),
        (png_of_size(60_000, 60_000), "too many pixels"),
        (png_of_size(10, 10), "broken picture"),
    ],
)
def test_unusable_data_has_a_countable_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "CMYK", "I;16", "F"])
def test_bands_give_the_pixels_of_the_whole(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (23, 17, 4), dtype=np.uint8)
    image = (
        Image.fromarray(noise.astype(np.uint16)[..., 0] * 257)
        if mode == "I;16"
        else Image.fromarray(noise)
    )
    image = (
        image
        if image.mode == mode
        else image.convert("RGB" if mode in ("P", "CMYK") else "RGBA").convert(mode)
    )
    data = encode(
        image,
        "TIFF" if mode in ("CMYK", "F") else "PNG",
        **({"transparency": 3} if mode == "P" else {}),
    )
    whole = np.asarray(decode_image(data, rotation=90))
    # Pictures of several real bands would take seconds for each mode.
    monkeypatch.setattr(decode, "_BAND_PIXELS", 50)
    np.testing.assert_array_equal(np.asarray(decode_image(data, rotation=90)), whole)


PEAK = """
import resource, sys
from PIL import Image
from rdm.sources.photographs.decode import decode_image
Image.init()
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_image(data, rotation=90)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_transparent_picture_is_held_twice_at_most(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", 25_000_000
    Image.new("RGBA", (5000, 5000), (255, 0, 0, 100)).save(path, compress_level=1)
    peak = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, check=True
    ).stdout
    assert int(peak) * 1024 < 10 * pixels  # two copies of four bytes, and a band


def test_webp_is_refused_at_fewer_pixels_because_it_is_decoded_in_more_memory() -> None:
    side = 8700  # of a picture in one color: 36 bytes
    bits = struct.pack("<I", (side - 1) | (side - 1) << 14 | 1 << 28)
    chunk = (
        b"VP8L" + struct.pack("<I", 15) + b"\x2f" + bits + bytes.fromhex("0710fd8f920522a2ff0100")
    )
    data = b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk
    with pytest.raises(ImageDecodeError, match="too many pixels: 8700x8700"):
        decode_image(data)


def test_tiff_of_a_huge_tile_is_refused() -> None:
    sides = {256: 8, 257: 8, 322: 40_000, 323: 40_000}  # of the picture, and of its only tile
    tags = {**sides, 258: 8, 259: 8, 262: 1, 277: 1, 324: 200, 325: 9}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())]
    data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(80)
    with pytest.raises(ImageDecodeError, match="too many pixels"):
        decode_image(data)


def test_gif_without_pixels_is_refused() -> None:
    data = b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b";"
    with pytest.raises(ImageDecodeError):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_picture_is_broken(encoded: Callable[..., bytes], kind: str) -> None:
    data = encoded(0, kind, size=(200, 160))
    with pytest.raises(ImageDecodeError):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"words", b"\0" * 100])
def test_extension_of_no_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(ImageDecodeError):
        image_extension(data)


@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damage_gives_a_picture_or_a_decode_error(kind: str, draw: st.DataObject) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    data = bytearray(encode(Image.fromarray(noise), kind))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(data))
    except ImageDecodeError:
        return
    assert decoded.mode == "RGB"
    assert min(decoded.size) >= 1


def test_rotation_takes_the_place_of_the_exif_orientation(
    picture: Callable[..., Image.Image],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image(encode(picture(1), "PNG", exif=exif), rotation=270)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(picture(1)), 3))
