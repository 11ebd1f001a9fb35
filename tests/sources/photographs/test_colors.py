"""Colors: a picture in another space becomes the sRGB that a viewer shows which honors profiles."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from rdm.sources import decode_image
from rdm.sources.photographs.colors import conversion, primaries_profile
from rdm.sources.photographs.containers import take_apart
from rdm.sources.photographs.metadata import ADOBE_RGB, Primaries

P3 = Primaries((0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06))
PROPHOTO = Primaries((0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), 1.8)
REC2020 = Primaries((0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046), "bt709")
LINEAR = Primaries((), 1.0)
RELATIVE = ImageCms.Intent.RELATIVE_COLORIMETRIC
SPACES = {
    "Adobe RGB": ADOBE_RGB,
    "Display P3": P3,
    "ProPhoto": PROPHOTO,
    "BT.2020": REC2020,
    "linear": LINEAR,
}


def encode(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A smooth picture of many colors that every space of these tests holds."""
    coarse = np.random.default_rng(0).integers(30, 226, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


def in_space(image: Image.Image, profile: bytes, mode: str = "RGB") -> Image.Image:
    """Return the pixels that show the same colors in another space."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    source = ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(
        image, source, target, renderingIntent=RELATIVE, outputMode=mode
    )
    assert found is not None
    found.info.clear()  # its profile would be written, too
    return found


def error(data: bytes, right: Image.Image) -> float:
    found = np.asarray(decode_image(data), np.float64)
    return float(np.abs(found - np.asarray(right.convert("RGB"), np.float64)).mean())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_colors_of_an_embedded_profile_are_converted(
    photo: Image.Image, space: str, kind: str, options: dict[str, object]
) -> None:
    profile = primaries_profile(SPACES[space])
    moved = in_space(photo, profile)
    assert error(encode("PNG", moved), photo) > 4  # what is to be mended
    limit = 1.5 if space == "linear" else 0.6  # 8 linear bits have few dark levels
    assert error(encode(kind, moved, icc_profile=profile, **options), photo) < limit


@pytest.mark.parametrize("space", SPACES)
def test_colors_of_a_jpeg_are_converted_and_its_profile_may_have_parts(
    photo: Image.Image, space: str
) -> None:
    profile = primaries_profile(SPACES[space])
    moved = in_space(photo, profile)
    large = profile + bytes(150_000)  # three segments
    data = encode("JPEG", moved, quality=100, subsampling=0, icc_profile=large)
    assert data.count(b"ICC_PROFILE\0") == 3
    assert error(data, photo) < (2.5 if space == "linear" else 1.2)


def curve_bytes(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def gray_profile(gamma: float) -> bytes:
    """Return the profile of a gray scale."""
    d50 = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"g\0" + bytes(78),
        b"wtpt": d50,
        b"kTRC": curve_bytes(gamma),
    }
    start, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"none", 0x02100000, b"mntr", b"GRAY", b"XYZ "
    )
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + d50[8:]
    return head.ljust(128, b"\0") + table + body


def shown(levels: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Return gray levels, 0 to 1, of a gamma as sRGB levels, 0 to 255."""
    light = levels**gamma
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(255 * srgb, np.float64)


@pytest.mark.parametrize("gamma", [1.0, 1.8])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_gray_of_a_profile_is_converted(gamma: float, kind: str) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 8, axis=0)
    options = {"quality": 100} if kind == "JPEG" else {}
    data = encode(kind, Image.fromarray(ramp), icc_profile=gray_profile(gamma), **options)
    right = np.repeat(shown(np.arange(256) / 255, gamma)[:, None], 3, axis=1)
    found = np.asarray(decode_image(data), np.float64)[4]
    assert np.abs(found - right)[20:].max() < (4 if kind == "JPEG" else 1.6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_sixteen_bits_of_gray_are_converted_before_they_become_eight(
    gamma: float, kind: str
) -> None:
    levels = np.linspace(0, 65_535, 512).astype(np.uint16)
    data = encode(
        kind, Image.fromarray(np.repeat(levels[None], 4, axis=0)), icc_profile=gray_profile(gamma)
    )
    found = np.asarray(decode_image(data), np.float64)[0, :, 1]
    right = shown(levels / 65_535, gamma)
    assert np.abs(found - right)[10:].max() < 3
    # of a tenth of the light: no bands
    assert len(set(found[:52].tolist())) > (30 if gamma == 1.0 else 15)


def test_sixteen_bit_gray_with_transparency_and_a_profile_is_laid_on_white() -> None:
    values = np.array([[0, 32768, 65535, 30000]], np.uint16)
    data = encode("PNG", Image.fromarray(values), transparency=30000, icc_profile=gray_profile(1.8))
    found = np.asarray(decode_image(data), np.int64)[0, :, 0].tolist()
    assert found == [0, pytest.approx(shown(np.array(0.5), 1.8), abs=1.5), 255, 255]


def sixteen_bit_png(values: NDArray[np.uint16], profile: bytes) -> bytes:
    """Return a PNG of 16 bits in each of three colors, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0))
    icc = chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + icc
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bits_of_color_are_converted(photo: Image.Image) -> None:
    profile = primaries_profile(P3)
    values = (np.asarray(in_space(photo, profile), np.int64) * 257).astype(np.uint16)
    assert error(sixteen_bit_png(values, profile), photo) < 0.6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_palette_is_converted(kind: str) -> None:
    profile = primaries_profile(P3)
    colors = Image.fromarray(np.random.default_rng(1).integers(60, 200, (8, 8, 3), dtype=np.uint8))
    moved = in_space(colors, profile).convert("P", palette=Image.Palette.ADAPTIVE)
    assert error(encode(kind, moved, icc_profile=profile), colors) < 0.6


def test_transparency_keeps_its_place_beside_a_profile(photo: Image.Image) -> None:
    profile = primaries_profile(P3)
    moved = in_space(photo, profile)
    moved.putalpha(Image.fromarray(np.full((48, 64), 128, np.uint8)))
    half = Image.blend(Image.new("RGB", photo.size, "white"), photo, 128 / 255)
    assert error(encode("PNG", moved, icc_profile=profile), half) < 0.8


def test_gray_picture_with_a_profile_of_colors_is_gray() -> None:
    data = encode("PNG", Image.new("L", (8, 8), 100), icc_profile=primaries_profile(LINEAR))
    assert decode_image(data).getpixel((0, 0)) == (168, 168, 168)


def cmyk_profile() -> bytes:
    """Return a printer's profile: a table of 3^4 points from inks to Lab, as simple as one can
    be."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 3)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    light = (1 - grid[:, :3]) * (1 - grid[:, 3:])
    lab = np.stack(
        [
            light.mean(axis=1),
            0.5 + 0.2 * (light[:, 0] - light[:, 1]),
            0.5 + 0.2 * (light[:, 1] - light[:, 2]),
        ]
    )
    table = np.rint(lab.T * [65280, 65535, 65535]).astype(">u2").tobytes()
    ends = struct.pack(">2H", 0, 65535)
    lut = (
        b"mft2\0\0\0\0"
        + bytes([4, 3, 3, 0])
        + struct.pack(">9i", *(65536 if n % 4 == 0 else 0 for n in range(9)))
    )
    lut += struct.pack(">2H", 2, 2) + ends * 4 + table + ends * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    description = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"c\0" + bytes(78)
    tags = {b"desc": description, b"wtpt": white, b"A2B0": lut}
    start, head, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        head += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    first = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"none", 0x02100000, b"prtr", b"CMYK", b"Lab "
    )
    first += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white[8:]
    return first.ljust(128, b"\0") + head + body


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_of_a_profile_are_converted(kind: str) -> None:
    profile = cmyk_profile()
    inks = Image.new("CMYK", (16, 16), (0, 0, 0, 127))  # half of black: L* 50, gray
    data = encode(kind, inks, icc_profile=profile, **({"quality": 100} if kind == "JPEG" else {}))
    assert decode_image(data).getpixel((8, 8)) == pytest.approx((119, 119, 119), abs=2)
    without = decode_image(encode(kind, inks)).getpixel((8, 8))
    assert without == pytest.approx((128, 128, 128), abs=2)


def test_lab_of_a_tiff_becomes_colors(photo: Image.Image) -> None:
    lab = ImageCms.profileToProfile(
        photo,
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        renderingIntent=RELATIVE,
        outputMode="LAB",
    )
    assert lab is not None
    assert error(encode("TIFF", lab), photo) < 1.5


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"no profile",
        bytes(3000),
        primaries_profile(P3)[:200],
        primaries_profile(P3)[:140] + bytes(200),
        gray_profile(1.0),
        cmyk_profile(),
        cmyk_profile()[:300],
    ],
    ids=["empty", "words", "zeros", "cut off", "without tables", "gray", "inks", "inks cut off"],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_profile_that_is_broken_or_of_other_pixels_is_passed_over(
    photo: Image.Image, profile: bytes, kind: str
) -> None:
    np.testing.assert_array_equal(
        np.asarray(decode_image(encode(kind, photo, icc_profile=profile))), np.asarray(photo)
    )


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        primaries_profile(Primaries((0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.0600001))),
    ],
    ids=["LittleCMS", "by hand"],
)
def test_profile_of_srgb_changes_no_pixel(photo: Image.Image, profile: bytes) -> None:
    np.testing.assert_array_equal(
        np.asarray(decode_image(encode("PNG", photo, icc_profile=profile))), np.asarray(photo)
    )


# PNGs that tell their colors without a profile


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(image: Image.Image, *chunks: bytes) -> bytes:
    data = encode("PNG", image)
    return data[:33] + b"".join(chunks) + data[33:]


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def chromaticities(primaries: Primaries) -> bytes:
    return chunk(
        b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in primaries.chromaticities))
    )


def test_gamma_and_chromaticities_of_a_png_are_converted(photo: Image.Image) -> None:
    moved = in_space(photo, primaries_profile(PROPHOTO))
    assert error(png_with(moved, gamma(1 / 1.8), chromaticities(PROPHOTO)), photo) < 0.6


def test_linear_png_is_converted(photo: Image.Image) -> None:
    assert error(png_with(in_space(photo, primaries_profile(LINEAR)), gamma(1)), photo) < 1.5


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma(0.45455)],
        [
            gamma(0.45455),
            chromaticities(Primaries((0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06))),
        ],
        [chromaticities(PROPHOTO)],
        [chunk(b"sRGB", b"\0"), gamma(1), chromaticities(PROPHOTO)],
        [chunk(b"cICP", b"\1\x0d\0\1"), gamma(1)],
        [chunk(b"cICP", b"\x09\x10\0\1")],
        [chunk(b"cICP", b"\xff\xff\0\1")],
        [chunk(b"cICP", b"\x0c")],
    ],
    ids=[
        "1/2.2",
        "sRGB in numbers",
        "no gamma",
        "sRGB first",
        "cICP first",
        "HDR",
        "unknown",
        "short",
    ],
)
def test_png_that_is_srgb_or_says_nothing_legible_is_unchanged(
    photo: Image.Image, chunks: list[bytes]
) -> None:
    np.testing.assert_array_equal(
        np.asarray(decode_image(png_with(photo, *chunks))), np.asarray(photo)
    )


def test_code_points_of_a_png_go_before_its_profile(photo: Image.Image) -> None:
    moved = in_space(photo, primaries_profile(P3))
    icc = chunk(b"iCCP", b"p\0\0" + zlib.compress(primaries_profile(PROPHOTO)))
    assert error(png_with(moved, icc, chunk(b"cICP", b"\x0c\x0d\0\1")), photo) < 0.6


def test_adobe_rgb_of_a_camera_that_embeds_no_profile_is_converted(photo: Image.Image) -> None:
    tags = Image.Exif()
    tags.get_ifd(0x8769)[0xA001] = 65_535
    tags.get_ifd(0x8769)[0xA005] = {1: "R03"}
    moved = in_space(photo, primaries_profile(ADOBE_RGB))
    data = encode("JPEG", moved, quality=100, subsampling=0, exif=tags.tobytes())
    assert b"R03" in data
    assert error(data, photo) < 1.2
    assert error(encode("JPEG", moved, quality=100, subsampling=0), photo) > 4


# BMP and GIF


def test_profile_of_a_bmp_is_converted(photo: Image.Image) -> None:
    profile = primaries_profile(P3)
    rows = np.asarray(in_space(photo, profile))[::-1, :, ::-1].tobytes()
    info = struct.pack("<IiiHHIIiiII", 124, *photo.size, 1, 24, 0, len(rows), 0, 0, 0, 0) + bytes(
        16
    )
    info += b"DEBM" + bytes(36 + 12) + struct.pack("<4I", 4, 124 + len(rows), len(profile), 0)
    head = b"BM" + struct.pack(
        "<IHHI", 14 + len(info) + len(rows) + len(profile), 0, 0, 14 + len(info)
    )
    assert error(head + info + rows + profile, photo) < 0.6


def test_profile_of_a_gif_is_converted() -> None:
    profile = primaries_profile(P3)
    colors = Image.fromarray(np.random.default_rng(1).integers(60, 200, (4, 4, 3), dtype=np.uint8))
    data = encode("GIF", in_space(colors, profile).convert("P", palette=Image.Palette.ADAPTIVE))
    place = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    blocks = [profile[start : start + 255] for start in range(0, len(profile), 255)]
    extension = (
        b"\x21\xff\x0bICCRGBG1012" + b"".join(bytes([len(part)]) + part for part in blocks) + b"\0"
    )
    assert error(data[:place] + extension + data[place:], colors) < 0.6


def test_bands_and_reductions_of_a_profile_agree_with_the_whole(tmp_path: Path) -> None:
    large = Image.fromarray(
        np.random.default_rng(2).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    ).resize((2200, 1900))
    # over one band of 4 million pixels
    data = encode("JPEG", large, icc_profile=primaries_profile(P3))
    whole = np.asarray(decode_image(data), np.float64)
    assert whole[-1].std() > 10
    half = decode_image(data, reduction=2)
    assert half.size == (1100, 950)
    blocks = whole.reshape(950, 2, 1100, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(half, np.float64) - blocks).mean() < 2


def test_profile_of_srgb_asks_for_no_conversion_and_another_for_one() -> None:
    image = Image.new("RGB", (8, 8), (10, 200, 30))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wanted = {None: False, srgb: False, primaries_profile(P3): True}
    for profile, converts in wanted.items():
        metadata = take_apart(encode("JPEG", image, quality=90, icc_profile=profile)).metadata
        assert (conversion(metadata, "RGB") is not None) == converts
