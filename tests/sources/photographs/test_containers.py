"""Good pixels under large or damaged metadata, in every format. The right pixels are those of the
file without it."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rdm.sources import ImageDecodeError, decode_image
from rdm.sources.photographs.decode import image_orientation, image_size

SIZE = (21, 13)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))
BOMB = zlib.compress(b"x=1 " * 600_000)  # 2.4 MB
LARGE = bytes(range(256)) * 12_000  # 3 MB


def encode(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


TURNED = np.rot90(np.asarray(NOISE), -1)  # what orientation 6 shows


# PNG


def chunk(
    kind: bytes, body: bytes, *, checksum: int | None = None, length: int | None = None
) -> bytes:
    right = zlib.crc32(kind + body)
    head = struct.pack(">I", len(body) if length is None else length)
    return head + kind + body + struct.pack(">I", right if checksum is None else checksum)


def png_with(chunks: bytes, *, at_end: bool = False) -> bytes:
    data = encode("PNG")
    place = len(data) - 12 if at_end else 33
    return data[:place] + chunks + data[place:]


PNG_METADATA = {
    "inflating zTXt": chunk(b"zTXt", b"parameters\0\0" + BOMB),
    "inflating XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "large tEXt": chunk(b"tEXt", b"workflow\0" + LARGE),
    "inflating profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_500_000))),
    "70 MB of text": b"".join(
        chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(2**20))) for n in range(70)
    ),
    "unknown compression of text": chunk(b"zTXt", b"key\0\7" + BOMB),
    "unknown compression of the profile": chunk(b"iCCP", b"icc\0\7" + BOMB),
    "profile without a name": chunk(b"iCCP", b""),
    "text without a key": chunk(b"tEXt", b"\0\xff"),
    "text that is no UTF-8": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe"),
    "text cut short": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1"),
    "digits that are none": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  4\nzz"),
    "wrong checksum of text": chunk(b"tEXt", b"key\0value", checksum=7),
    "wrong checksum of the time": chunk(b"tIME", bytes(7), checksum=7),
    "short gamma": chunk(b"gAMA", b"\0"),
    "gamma of zero": chunk(b"gAMA", bytes(4)),
    "short chromaticities": chunk(b"cHRM", b"\0" * 5),
    "impossible chromaticities": chunk(b"gAMA", struct.pack(">I", 60_000))
    + chunk(b"cHRM", bytes(32)),
    "short sRGB": chunk(b"sRGB", b""),
    "short density": chunk(b"pHYs", b"\0"),
    "broken EXIF": chunk(b"eXIf", b"MM\0\x2a\xff\xff\xff\xff"),
    "empty EXIF": chunk(b"eXIf", b""),
    "broken animation": chunk(b"acTL", b"\0") + chunk(b"fcTL", b"\0"),
    "transparency cut short": chunk(b"tRNS", b"\0\0"),
    "length too long": chunk(b"tEXt", b"key\0value", length=40),
    "length far too long": chunk(b"zTXt", b"key\0\0" + BOMB, length=2**31 - 1),
    "length too short": chunk(b"tEXt", b"key\0" + LARGE[:999], length=40),
}


@pytest.mark.parametrize("name", PNG_METADATA)
@pytest.mark.parametrize("at_end", [False, True], ids=["before", "after"])
def test_metadata_does_not_cost_a_png(name: str, at_end: bool) -> None:
    data = png_with(PNG_METADATA[name], at_end=at_end)
    np.testing.assert_array_equal(pixels(data), np.asarray(NOISE))
    assert image_size(data) == SIZE


def test_png_without_its_end_is_taken() -> None:
    np.testing.assert_array_equal(
        pixels(png_with(b"")[:-12] + b"\0\0\1\0tEXtcut"), np.asarray(NOISE)
    )


def test_wrong_checksum_of_the_size_is_an_error() -> None:
    data = bytearray(encode("PNG"))
    data[29] ^= 1
    with pytest.raises(ImageDecodeError):
        decode_image(bytes(data))


XMP = '<x:xmpmeta xmlns:tiff="t"><d {}/>'.format('tiff:Orientation="6"').encode()
RAW_EXIF = b"\nexif\n 1\n" + exif(6).hex().encode()
PNG_ORIENTATIONS = {
    "EXIF": chunk(b"eXIf", exif(6)[6:]),
    "EXIF with JPEG's head": chunk(b"eXIf", exif(6)),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "compressed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    "inflating XMP": chunk(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP + b" " * 3_000_000)
    ),
    "large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LARGE + XMP),
    "ImageMagick's": chunk(
        b"zTXt",
        b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 1\n" + exif(6).hex().encode()),
    ),
}


@pytest.mark.parametrize("name", PNG_ORIENTATIONS)
def test_orientation_beside_large_metadata_is_applied(name: str) -> None:
    data = png_with(
        PNG_METADATA["inflating zTXt"] + PNG_ORIENTATIONS[name] + PNG_METADATA["inflating profile"]
    )
    np.testing.assert_array_equal(pixels(data), TURNED)
    assert image_orientation(data) == 6


def test_animation_shows_the_picture_of_its_first_frame() -> None:
    other = Image.new("RGB", SIZE, "red")
    data = encode("PNG", save_all=True, append_images=[other], default_image=False)
    np.testing.assert_array_equal(pixels(data), np.asarray(NOISE))


PEAK = """
import resource, sys
from rdm.sources.photographs.decode import decode_image
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_image(data)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_metadata_is_not_held_in_memory(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(60_000_000), 1)
    kinds = (
        (b"zTXt", b"Raw profile type exif\0\0"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"),
        (b"iCCP", b"icc\0\0"),
    )
    text = chunk(b"tEXt", b"workflow\0" + bytes(40_000_000))
    path = tmp_path / "bomb.png"
    path.write_bytes(png_with(text + b"".join(chunk(kind, head + bomb) for kind, head in kinds)))
    peak = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, check=True
    ).stdout
    assert int(peak) * 1024 < 30_000_000


# JPEG


def segment(marker: int, body: bytes, *, length: int | None = None) -> bytes:
    return (
        bytes([0xFF, marker])
        + struct.pack(">H", len(body) + 2 if length is None else length)
        + body
    )


JPEG = encode("JPEG", quality=95)
THUMBNAIL = encode("JPEG", Image.new("RGB", (8, 8), "red"))


def jpeg_with(segments: bytes) -> bytes:
    return JPEG[:2] + segments + JPEG[2:]


JPEG_METADATA = {
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "empty profile": segment(0xE2, b"ICC_PROFILE\0"),
    "profile with a part missing": segment(0xE2, b"ICC_PROFILE\0\2\3" + bytes(50)),
    "profile of garbage": segment(0xE2, b"ICC_PROFILE\0\1\1" + LARGE[:60_000]),
    "broken Photoshop": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x02xx"),
    "broken MPF": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "MPF of no frame": segment(0xE2, b"MPF\0"),
    "comment": segment(0xFE, LARGE[:60_000]),
    "EXIF without a header": segment(0xE1, b"Exif\0\0"),
    "EXIF of another order": segment(0xE1, b"Exif\0\0XX*\0" + bytes(8)),
    "EXIF that leads nowhere": segment(0xE1, b"Exif\0\0MM\0\x2a\xff\xff\xff\xff"),
    "EXIF with a huge count": segment(0xE1, b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + bytes(30)),
    "EXIF with an impossible orientation": segment(
        0xE1, exif(1).replace(b"\x01\x12\0\3\0\0\0\1\0\1", b"\x01\x12\0\3\0\0\0\1\0\x63")
    ),
    "many large segments": segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + LARGE[:65_000])
    * 50,
    "EXIF in many segments": segment(0xE1, b"Exif\0\0" + LARGE[:65_000]) * 50,
    "length of zero": segment(0xE1, b"Exif\0\0" + b"\x01" * 40, length=0),
    "length too short": segment(0xE1, b"Exif\0\0" + b"\x01" * 40, length=9),
    "length too long": segment(0xE1, b"Exif\0\0" + b"\x01" * 40, length=90),
    "length over the end": segment(0xEB, b"x" * 40, length=65_535),
    "a thumbnail in a short segment": segment(0xE1, b"Exif\0\0" + THUMBNAIL, length=20),
    "a thumbnail in a long segment": segment(
        0xE1, b"Exif\0\0" + THUMBNAIL, length=len(THUMBNAIL) + 60
    ),
    "bytes of no segment": segment(0xE1, b"Exif\0\0") + b"\0\0words\0",
    "fill bytes": b"\xff\xff\xff" + segment(0xE1, b"Exif\0\0") + b"\xff\xff",
}


@pytest.mark.parametrize("name", JPEG_METADATA)
def test_metadata_does_not_cost_a_jpeg(name: str) -> None:
    data = jpeg_with(JPEG_METADATA[name])
    np.testing.assert_array_equal(pixels(data), pixels(JPEG))
    assert image_size(data) == SIZE


@pytest.mark.parametrize("name", JPEG_METADATA)
def test_orientation_beside_damage_is_applied_to_a_jpeg(name: str) -> None:
    data = jpeg_with(segment(0xE1, exif(6)) + JPEG_METADATA[name])
    np.testing.assert_array_equal(pixels(data), np.rot90(pixels(JPEG), -1))


@pytest.mark.parametrize("length", [0, 9, 200, 65_535])
def test_orientation_in_a_segment_of_wrong_length_is_applied(length: int) -> None:
    np.testing.assert_array_equal(
        pixels(jpeg_with(segment(0xE1, exif(6), length=length))), np.rot90(pixels(JPEG), -1)
    )


def test_orientation_of_xmp_is_applied_where_exif_is_broken() -> None:
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    data = jpeg_with(JPEG_METADATA["EXIF that leads nowhere"] + xmp)
    np.testing.assert_array_equal(pixels(data), np.rot90(pixels(JPEG), -1))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_every_kind_keeps_its_colors_beside_damage(mode: str, progressive: bool) -> None:
    clean = encode("JPEG", NOISE.convert(mode), progressive=progressive)
    data = clean[:2] + JPEG_METADATA["length too long"] + clean[2:]
    np.testing.assert_array_equal(pixels(data), pixels(clean))


def test_adobe_segment_with_bytes_behind_it_keeps_the_colors() -> None:
    clean = encode("JPEG", NOISE.convert("CMYK"))
    end = clean.index(b"Adobe") + 12
    np.testing.assert_array_equal(pixels(clean[:end] + b"junk" + clean[end:]), pixels(clean))


def test_jpeg_cut_off_in_its_pixels_is_broken() -> None:
    with pytest.raises(ImageDecodeError):
        decode_image(jpeg_with(JPEG_METADATA["length too long"])[:-60])


# WebP


def riff(*chunks: tuple[bytes, bytes], cut: int = 0) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return (b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body)[: -cut or None]


def webp_frame(*, lossless: bool) -> tuple[bytes, bytes]:
    data = encode("WEBP", lossless=lossless)
    return data[12:16], data[20 : 20 + struct.unpack("<I", data[16:20])[0]]


VP8X = (
    b"VP8X",
    b"\x2c\0\0\0" + struct.pack("<I", SIZE[0] - 1)[:3] + struct.pack("<I", SIZE[1] - 1)[:3],
)


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize(
    "metadata",
    [
        ((b"ICCP", b"no profile"),),
        ((b"EXIF", b"MM\0\x2a\xff\xff\xff\xff"), (b"XMP ", LARGE)),
        ((b"EXIF", b""), (b"XMP ", b"\xff"), (b"ODD ", b"123")),
    ],
    ids=["profile", "EXIF and XMP", "odd"],
)
@pytest.mark.parametrize("cut", [0, 3])
def test_metadata_does_not_cost_a_webp(
    lossless: bool, metadata: tuple[tuple[bytes, bytes], ...], cut: int
) -> None:
    frame = webp_frame(lossless=lossless)
    before = [part for part in metadata if part[0] == b"ICCP"]
    after = [part for part in metadata if part[0] != b"ICCP"]
    data = riff(VP8X, *before, frame, *after, cut=cut if after else 0)
    np.testing.assert_array_equal(pixels(data), pixels(riff(frame)))
    assert image_size(data) == SIZE


@pytest.mark.parametrize("block", [exif(6), exif(6)[6:]], ids=["with JPEG's head", "without"])
def test_orientation_of_a_webp_is_applied_beside_damage(block: bytes) -> None:
    frame = webp_frame(lossless=True)
    data = riff(VP8X, (b"ICCP", b"none"), frame, (b"EXIF", block), (b"XMP ", LARGE), cut=40)
    np.testing.assert_array_equal(pixels(data), TURNED)


def test_webp_cut_off_in_its_pixels_is_broken() -> None:
    with pytest.raises(ImageDecodeError):
        decode_image(riff(webp_frame(lossless=True), cut=20))


# TIFF


def tiff(
    entries: dict[int, tuple[int, int, bytes]], *, big: bool = False, order: str = "<"
) -> bytes:
    """Return an uncompressed TIFF of the noise; `entries` have kind, count and bytes, over four of
    them elsewhere."""
    data, place = np.asarray(NOISE).tobytes(), 16
    number = "Q" if big else "I"
    width = struct.calcsize(number)

    def pack(value: int) -> bytes:
        return struct.pack(order + number, value)

    one = {
        256: SIZE[0],
        257: SIZE[1],
        259: 1,
        262: 2,
        273: place,
        277: 3,
        278: SIZE[1],
        279: len(data),
    }
    rows = {tag: (16 if big else 4, 1, pack(value)) for tag, value in one.items()}
    rows |= {258: (3, 3, struct.pack(order + "3H", 8, 8, 8)), **entries}
    body, directory = data, b""
    for tag, (kind, count, value) in sorted(rows.items()):
        if len(value) > width:
            body, value = body + value, pack(place + len(body))
        directory += struct.pack(order + "HH" + number, tag, kind, count) + value.ljust(
            width, b"\0"
        )
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HH", 8, 0) if big else b""
    start = place + len(body)
    count = struct.pack(order + ("Q" if big else "H"), len(rows))
    return (head + pack(start)).ljust(place, b"\0") + body + count + directory + bytes(8)


TIFF_METADATA = {
    "none": {},
    "large description": {270: (2, len(LARGE), LARGE)},
    "description outside of the file": {270: (2, 5000, struct.pack("<I", 2**31 - 1))},
    "description of a huge size": {270: (2, 2**31, struct.pack("<I", 8))},
    "XMP of another kind": {700: (4, 2, LARGE[:8])},
    "XMP that is text": {700: (2, 40, LARGE[:40])},
    "EXIF that leads nowhere": {
        34665: (4, 1, struct.pack("<I", 2**31 - 1)),
        34853: (4, 1, b"\1\0\0\0"),
    },
    "EXIF in the pixels": {
        34665: (4, 1, struct.pack("<I", 40)),
        40965: (4, 1, struct.pack("<I", 41)),
    },
    "profile of garbage": {34675: (7, 3000, LARGE[:3000])},
    "profile of another kind": {34675: (12, 2, LARGE[:16])},
    "unknown kind": {305: (99, 5, b"abcd")},
    "orientation of another kind": {274: (2, 3, b"ab\0")},
    "orientation of 99": {274: (3, 1, b"\x63\0")},
}


@pytest.mark.parametrize("name", TIFF_METADATA)
def test_metadata_does_not_cost_a_tiff(name: str) -> None:
    np.testing.assert_array_equal(pixels(tiff(TIFF_METADATA[name])), np.asarray(NOISE))


@pytest.mark.parametrize(("big", "order"), [(False, "<"), (False, ">"), (True, "<")])
def test_orientation_of_a_tiff_is_applied(big: bool, order: str) -> None:
    damage = {270: (2, 2**30, bytes(4))} if not big else {}
    data = tiff({274: (3, 1, struct.pack(order + "H", 6)), **damage}, big=big, order=order)
    np.testing.assert_array_equal(pixels(data), TURNED)


def test_rotation_takes_the_place_of_a_tiffs_orientation() -> None:
    data = tiff({274: (3, 1, struct.pack("<H", 6))})
    np.testing.assert_array_equal(
        np.asarray(decode_image(data, rotation=90)), np.rot90(np.asarray(NOISE))
    )


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_tiff_of_every_kind_has_the_pixels_that_pillow_reads(compression: str, mode: str) -> None:
    image = NOISE.convert("L").convert("I;16") if mode == "I;16" else NOISE.convert(mode)
    data = encode("TIFF", image, compression=compression, exif=exif(6), description="x")
    np.testing.assert_array_equal(
        pixels(data), pixels(encode("TIFF", image.transpose(Image.Transpose.ROTATE_270)))
    )


def test_tiff_of_jpegs_is_decoded() -> None:
    assert (
        np.abs(
            pixels(encode("TIFF", compression="jpeg", quality=100)).astype(int) - np.asarray(NOISE)
        ).mean()
        < 3
    )


# GIF and BMP


def test_long_comment_of_a_gif_is_passed_over() -> None:
    clean = encode("GIF", NOISE.convert("P"))
    place = 13 + 3 * 2 ** ((clean[10] & 7) + 1)
    comment = b"\x21\xfe" + b"".join(b"\xff" + bytes(255) for _ in range(20_000)) + b"\0"  # 5 MB
    np.testing.assert_array_equal(pixels(clean[:place] + comment + clean[place:]), pixels(clean))


def test_transparency_of_a_gif_is_kept() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    data = encode("GIF", image, transparency=0, comment=b"words")
    assert pixels(data).tolist() == [[[255, 255, 255], [0, 0, 255]]]


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]), st.binary(max_size=60), st.data())
def test_no_metadata_changes_the_pixels(kind: str, body: bytes, draw: st.DataObject) -> None:
    if kind == "JPEG":
        head = draw.draw(
            st.sampled_from(
                [b"Exif\0\0", b"JFIF\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"MPF\0", b""]
            )
        )
        marker = draw.draw(st.sampled_from([0xE0, 0xE1, 0xE2, 0xED, 0xFE]))
        found, right = decode_image(jpeg_with(segment(marker, head + body))), pixels(JPEG)
    elif kind == "PNG":
        name = draw.draw(
            st.sampled_from(
                [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"pHYs", b"acTL", b"fcTL"]
            )
        )
        found, right = decode_image(png_with(chunk(name, body))), np.asarray(NOISE)
    elif kind == "WEBP":
        name = draw.draw(st.sampled_from([b"EXIF", b"XMP ", b"ICCP"]))
        found, right = (
            decode_image(riff(VP8X, webp_frame(lossless=True), (name, body))),
            np.asarray(NOISE),
        )
    else:
        tag = draw.draw(st.sampled_from([270, 274, 305, 700, 34665, 34675, 34853]))
        entry = (draw.draw(st.integers(0, 20)), draw.draw(st.integers(0, 2**32 - 1)), body)
        found, right = decode_image(tiff({tag: entry})), np.asarray(NOISE)
    if found.size == SIZE:  # an orientation is not of this test
        assert sorted(map(tuple, np.asarray(found).reshape(-1, 3))) == sorted(
            map(tuple, right.reshape(-1, 3))
        )
