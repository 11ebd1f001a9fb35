from __future__ import annotations

import io
import os
import posixpath
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdm.errors import SourceError
from rdm.sources import FetchConfig, decode_image, open_source
from rdm.sources.kinds.folder import FolderSource
from rdm.sources.kinds.webdataset import WebDatasetSource


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def members(encoded: Callable[..., bytes]) -> dict[str, bytes]:
    return {
        f"{number:04d}.{ending}": encoded(number) if ending == "jpg" else b'{"a": 1}'
        for number in range(3)
        for ending in ("jpg", "json")
    }


def test_pictures_of_every_tar_are_read_by_offset(
    tmp_path: Path, members: dict[str, bytes], encoded: Callable[..., bytes]
) -> None:
    write_tar(tmp_path / "b.tar", members)
    write_tar(tmp_path / "a.tar", {"x/7.png": encoded(7, "PNG")})
    source = open_source(f"webdataset://{tmp_path}")
    table = source.listing()
    assert table["image_id"].to_pylist() == ["0000", "0001", "0002", "x/7"]
    read = [source.read(location) for location in table["location"].to_pylist()]
    assert read == [
        members["0000.jpg"],
        members["0001.jpg"],
        members["0002.jpg"],
        encoded(7, "PNG"),
    ]
    assert all(decode_image(data).size == (48, 40) for data in read)


def test_the_beginning_of_a_picture_ends_with_the_picture(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    source = open_source(f"webdataset://{write_tar(tmp_path / 'a.tar', members)}")
    location = source.listing()["location"][0].as_py()
    assert source.read(location, 10) == members["0000.jpg"][:10]
    assert source.read(location, 10**6) == members["0000.jpg"]


def test_single_tar_with_any_name(tmp_path: Path, members: dict[str, bytes]) -> None:
    source = open_source(f"webdataset://{write_tar(tmp_path / 'photos.wds', members)}")
    assert source.read(source.listing()["location"][1].as_py()) == members["0001.jpg"]


def test_long_names_have_the_right_offset(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    source = open_source(
        f"webdataset://{write_tar(tmp_path / 'a.tar', {'n' * 150 + '.jpg': encoded(0)})}"
    )
    assert source.read(source.listing()["location"][0].as_py()) == encoded(0)


def test_missing_dataset_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(f"webdataset://{tmp_path}/none.tar")


def test_folder_without_tars_says_what_is_in_it(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "list.parquet"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        SourceError, match=r"no \.tar in the folder or below, .* 2 \.jpg, 1 \.parquet"
    ) as caught:
        open_source(f"webdataset://{tmp_path}").listing()
    assert "folder://DIR" in caught.value.fix


def test_tars_of_folders_below_come_last_and_are_read_in_place(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    other = {name: data + b" " for name, data in members.items()}
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_tar(tmp_path / "a" / "b" / "0.tar", other)
    write_tar(tmp_path / "z.TAR", members)
    write_tar(tmp_path / "._z.tar", other)
    source = open_source(f"webdataset://{tmp_path}")
    rows = {row["image_id"]: row["location"] for row in source.listing().to_pylist()}
    assert list(rows) == [
        "0000",
        "0001",
        "0002",
        *(f"a/b/0.tar/000{number}.jpg" for number in range(3)),
    ]
    assert source.read(rows["0001"]) == members["0001.jpg"]
    assert source.read(rows["a/b/0.tar/0001.jpg"]) == other["0001.jpg"]


@pytest.mark.parametrize(
    "pattern",
    ["{000..001}.tar", "*/00[01].tar", "d/{000,001}.tar", "**/00?.tar", "{d/000,d/001}.tar"],
)
def test_pattern_names_tars(tmp_path: Path, members: dict[str, bytes], pattern: str) -> None:
    (tmp_path / "d").mkdir()
    write_tar(tmp_path / "d" / "000.tar", members)
    write_tar(tmp_path / "d" / "001.tar", {"x.jpg": members["0001.jpg"]})
    base = tmp_path if "d/" in pattern or "*" in pattern else tmp_path / "d"
    source = open_source(f"webdataset://{base}/{pattern}")
    table = source.listing()
    assert table["image_id"].to_pylist() == ["0000", "0001", "0002", "x"]
    assert source.read(table["location"][3].as_py()) == members["0001.jpg"]


def test_pattern_that_names_missing_tars_says_which(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    write_tar(tmp_path / "000.tar", members)
    with pytest.raises(SourceError, match="2 of the tars of the pattern do not exist") as caught:
        open_source(f"webdataset://{tmp_path}/{{000..002}}.tar")
    assert caught.value.where == str(tmp_path / "001.tar")
    with pytest.raises(SourceError, match="the WebDataset does not exist"):
        open_source(f"webdataset://{tmp_path}/{{100..102}}.tar")


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "sub/b.tar.zst"])
def test_compressed_tars_in_a_folder_are_not_passed_over(
    tmp_path: Path, members: dict[str, bytes], name: str
) -> None:
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match="compressed tars are not read: 1 ") as caught:
        open_source(f"webdataset://{tmp_path}").listing()
    assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("name", ["b.tar.part", "b.tar.aria2", "b.tar.CRDOWNLOAD"])
def test_tar_that_is_still_being_fetched_is_not_passed_over(
    tmp_path: Path, members: dict[str, bytes], name: str
) -> None:
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "a.tar.md5").write_bytes(b"x")
    assert open_source(f"webdataset://{tmp_path}").listing().num_rows == 3
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match="a file is not whole"):
        open_source(f"webdataset://{tmp_path}").listing()


def test_location_cannot_lead_out_of_the_folder(tmp_path: Path, members: dict[str, bytes]) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "out.tar", members)
    write_tar(tmp_path / "in" / "a.tar", members)
    with pytest.raises(OSError, match="No such file"):
        open_source(f"webdataset://{tmp_path}/in").read("../out.tar:512:10")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".pjpeg", ".mpo"])
def test_every_usual_ending_of_a_picture_is_taken(
    tmp_path: Path, members: dict[str, bytes], suffix: str
) -> None:
    source = open_source(
        f"webdataset://{write_tar(tmp_path / 'a.tar', {f'x{suffix}': members['0000.jpg']})}"
    )
    assert source.listing()["image_id"].to_pylist() == ["x"]


def damage_header(data: bytes) -> bytes:
    second = data.index(b"0000.json")
    return data[:second] + b"\xff" + data[second + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"words" * 300,
        lambda data: data[:700],
        lambda data: data[: 512 + 300],
        lambda data: data[: data.index(b"0001.jpg")],
        damage_header,
    ],
    ids=["empty", "words", "in a header", "in a picture", "between members", "a flipped byte"],
)
def test_damaged_tar_is_an_error_and_loses_nothing_in_silence(
    tmp_path: Path, members: dict[str, bytes], damage: Callable[[bytes], bytes]
) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match="damaged") as caught:
        open_source(f"webdataset://{tmp_path}").listing()
    assert caught.value.where == str(path)


def test_compressed_tar_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = write_tar(tmp_path / "a.tar", members, "w:gz")
    with pytest.raises(SourceError, match="damaged or compressed"):
        open_source(f"webdataset://{path}").listing()


def test_pipe_named_like_a_tar_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(SourceError, match="not a regular file"):
        open_source(f"webdataset://{tmp_path}").listing()


def test_key_in_two_tars_belongs_to_the_first(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": encoded(0)})
    write_tar(
        tmp_path / "b.tar", {"0.jpg": encoded(1), "0.png": encoded(2, "PNG"), "1.jpg": encoded(3)}
    )
    source = open_source(f"webdataset://{tmp_path}")
    read = {row["image_id"]: source.read(row["location"]) for row in source.listing().to_pylist()}
    assert read == {
        "0": encoded(0),
        "1": encoded(3),
        "b.tar/0.jpg": encoded(1),
        "b.tar/0.png": encoded(2, "PNG"),
    }


def etags(path: Path) -> list[str]:
    return open_source(f"webdataset://{path}").listing()["etag"].to_pylist()


def test_tar_without_times_that_is_written_anew_changes_its_pictures(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    for name in ("a", "b"):
        write_tar(
            tmp_path / f"{name}.tar", {f"{name}{member}": data for member, data in members.items()}
        )
    before = etags(tmp_path)
    assert etags(tmp_path) == before
    os.utime(tmp_path / "b.tar", ns=(1, 1))
    assert [one == other for one, other in zip(before, etags(tmp_path), strict=True)] == [
        True
    ] * 3 + [False] * 3


def test_time_of_a_member_counts_where_there_is_one(tmp_path: Path, photos: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos / "p00.jpg", "0.jpg")
    before = etags(tmp_path / "a.tar")
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    assert etags(tmp_path / "a.tar") == before


# What tar itself would extract, without hidden files


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), 1_700_000_000
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def contents(path: Path) -> dict[str, bytes]:
    """Return what a source lists and reads, by id."""
    source = open_source(f"webdataset://{path}")
    return {row["image_id"]: source.read(row["location"]) for row in source.listing().to_pylist()}


@pytest.mark.parametrize(
    "name",
    [
        "._0.jpg",
        "./._0.jpg",
        "a/._0.jpg",
        ".hidden/0.jpg",
        "a/.b/0.jpg",
        "__MACOSX/0.jpg",
        "a/__MACOSX/._0.jpg",
        ".jpg",
    ]
    + [".DS_Store", "lost+found/0.jpg"],
)
def test_hidden_members_are_left_out(
    tmp_path: Path, encoded: Callable[..., bytes], name: str
) -> None:
    write_tar(
        tmp_path / "a.tar", {"0.jpg": encoded(0), name: b"not a picture", "a/1.jpg": encoded(1)}
    )
    assert contents(tmp_path) == {"0": encoded(0), "a/1": encoded(1)}


@pytest.mark.parametrize("copies", [2, 3, 5])
@pytest.mark.parametrize("again", ["0.jpg", "./0.jpg", "/0.jpg", ".//a/../0.jpg"])
def test_of_members_of_one_name_the_last_counts(
    tmp_path: Path,
    encoded: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    copies: int,
    again: str,
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.jpg", encoded(0))
        add(tar, "1.jpg", encoded(1))
        for number in range(1, copies):
            add(tar, again, encoded(10 + number))
    assert contents(tmp_path) == {"0": encoded(9 + copies), "1": encoded(1)}
    assert f"left out: {copies - 1}, such as 0.jpg" in caplog.text


def test_key_stays_with_the_member_that_had_it_first(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, seed in (("0.jpg", 0), ("0.png", 1), ("0.jpg", 2)):
            add(tar, name, encoded(seed))
    assert contents(tmp_path) == {"0": encoded(2), "a.tar/0.png": encoded(1)}


def test_copies_that_are_no_pictures_warn_of_nothing(
    tmp_path: Path, encoded: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.json", "0.json", "._0.jpg", "._0.jpg"):
            add(tar, name, b"{}")
        add(tar, "0.jpg", encoded(0))
    assert list(contents(tmp_path)) == ["0"]
    assert not caplog.records


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_length_and_script_are_right(
    tmp_path: Path, encoded: Callable[..., bytes], format: int
) -> None:
    names = [
        "n" * 150,
        "d" * 90 + "/" + "e" * 200,
        "写真/鳥",
        "a/b/c/d",
        "train.v1/22.0/1.1",
        "a b",
        "new\nline",
    ]
    with tarfile.open(tmp_path / "a.tar", "w", format=format, encoding="utf-8") as tar:
        for number, name in enumerate(names):
            add(tar, f"{name}.jpg", encoded(number))
    assert contents(tmp_path) == {name: encoded(number) for number, name in enumerate(names)}


def test_name_that_is_no_utf8_is_taken(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        add(tar, "café.jpg", encoded(0))
    assert contents(tmp_path) == {r"caf\xe9": encoded(0)}


def test_links_are_what_they_lead_to(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a/0.jpg", encoded(0))
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="a/0.jpg")
        add(tar, "a/soft.jpg", type=tarfile.SYMTYPE, linkname="0.jpg")
        add(tar, "b/up.jpg", type=tarfile.SYMTYPE, linkname="../a/./soft.jpg")
        add(tar, "annexed.jpg", type=tarfile.SYMTYPE, linkname=".git/annex/objects/x")
        add(tar, ".git/annex/objects/x", encoded(5))
    found = contents(tmp_path)
    assert found == {
        **dict.fromkeys(["a/0", "hard", "a/soft", "b/up"], encoded(0)),
        "annexed": encoded(5),
    }


def test_hard_link_keeps_what_it_led_to_and_a_soft_one_follows(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.jpg", encoded(0))
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="./0.jpg")
        add(tar, "soft.jpg", type=tarfile.SYMTYPE, linkname="0.jpg")
        add(tar, "0.jpg", encoded(1))
    assert contents(tmp_path) == {"0": encoded(1), "hard": encoded(0), "soft": encoded(1)}


@pytest.mark.parametrize(
    "target", ["none.jpg", "../0.jpg", "/0.jpg", "circle.jpg", "folder.jpg", ""]
)
def test_link_to_nothing_costs_a_row_of_the_ledger(
    tmp_path: Path, encoded: Callable[..., bytes], target: str
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.jpg", encoded(0))
        add(tar, "folder.jpg", type=tarfile.DIRTYPE)
        add(tar, "circle.jpg", type=tarfile.SYMTYPE, linkname=target)
    source = open_source(f"webdataset://{tmp_path}")
    rows = [
        row
        for row, _ in source.take(source.listing().to_pylist(), tmp_path / "scratch", FetchConfig())
    ]
    assert [(row["image_id"], row["status"], row["error_message"]) for row in rows] == [
        ("0", "success", ""),
        ("circle", "failed", "link to nothing: its target is not in the tar"),
    ]


def test_directory_and_device_named_like_pictures_are_none(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "d.jpg", type=tarfile.DIRTYPE)
        add(tar, "old.jpg/", type=tarfile.AREGTYPE)
        add(tar, "pipe.jpg", type=tarfile.FIFOTYPE)
        add(tar, "tty.jpg", type=tarfile.CHRTYPE)
        add(tar, "d.jpg/0.jpg", encoded(0))
    assert contents(tmp_path) == {"d.jpg/0": encoded(0)}


SPARSE = [
    "--format=gnu",
    *(f"--format=posix --sparse-version={version}" for version in ("0.0", "0.1", "1.0")),
]


def bitmap(height: int = 400) -> bytes:
    """Return a picture whose file is mostly holes: noise, black, noise."""
    rows = np.zeros((height, 300, 3), np.uint8)
    rows[:9] = rows[-5:] = np.random.default_rng(0).integers(1, 256, (1, 300, 3))
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, "BMP")
    return buffer.getvalue()


def write_with_holes(path: Path, data: bytes) -> None:
    """Write a file whose blocks of zeros take no place on the disk, so that `tar -S` leaves them
    out."""
    with open(path, "wb") as file:
        for start in range(0, len(data), 4096):
            if any(block := data[start : start + 4096]):
                file.seek(start)
                file.write(block)
        file.truncate(len(data))


@pytest.mark.parametrize("options", SPARSE)
def test_holes_of_a_sparse_member_are_filled(
    tmp_path: Path, encoded: Callable[..., bytes], options: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in {
        "0.jpg": encoded(0),
        "s.bmp": bitmap(),
        f"{'n' * 120}.bmp": bitmap(300),
        "z.jpg": encoded(1),
    }.items():
        write_with_holes(folder / name, data)
    tar = ["tar", "-c", "-S", *options.split(), "-f", str(tmp_path / "a.tar"), "-C", str(folder)]
    subprocess.run([*tar, "--sort=name", "."], check=True)
    assert (tmp_path / "a.tar").stat().st_size < 120_000  # 630 kB without holes
    assert contents(tmp_path / "a.tar") == {
        "0": encoded(0),
        "s": bitmap(),
        "n" * 120: bitmap(300),
        "z": encoded(1),
    }
    source = open_source(f"webdataset://{tmp_path / 'a.tar'}")
    locations = dict(
        zip(*(source.listing()[name].to_pylist() for name in ("image_id", "location")), strict=True)
    )
    assert source.read(locations["s"], 70) == bitmap()[:70]


def test_sparse_member_of_a_huge_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.bmp"
    with open(path, "wb") as file:
        file.truncate(2**40)
    subprocess.run(
        ["tar", "-c", "-S", "-f", tmp_path / "a.tar", "-C", tmp_path, "huge.bmp"], check=True
    )
    source = open_source(f"webdataset://{tmp_path / 'a.tar'}")
    with pytest.raises(OSError, match="too large"):
        source.read(source.listing()["location"][0].as_py())


def test_tar_that_lost_its_sparse_member_is_a_read_error(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    write_with_holes(tmp_path / "s.bmp", bitmap())
    tar = ["tar", "-c", "-S", "-f", tmp_path / "a.tar", "-C", tmp_path, "s.bmp"]
    subprocess.run(tar, check=True)
    source = open_source(f"webdataset://{tmp_path / 'a.tar'}")
    location = source.listing()["location"][0].as_py()
    write_tar(tmp_path / "a.tar", {"0.jpg": bytes(4000)})
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(b"\1" + data[1:])
    with pytest.raises(OSError, match="the tar has changed"):
        source.read(location)


def random_members(
    rng: random.Random, pictures: list[bytes]
) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """Yield name, fields and contents of members: repeated, hidden, nested, linked, sparse and long
    ones."""
    folders = ["", "a/", "./", "a/b.c/", ".h/", "__MACOSX/", "d" * 60 + "/" + "e" * 60 + "/", "写/"]
    names = ["0", "1", "2.x", "._0", "n" * 101]
    regular: list[str] = []
    for _ in range(rng.randint(3, 25)):
        name = f"{rng.choice(folders)}{rng.choice(names)}.jpg"
        kind = rng.random()
        if kind < 0.65 or not regular:
            regular.append(name)
            yield name, {"mtime": rng.randint(0, 2)}, rng.choice(pictures)
        elif kind < 0.75:
            yield f"{rng.choice(folders)}dir.jpg", {"type": tarfile.DIRTYPE}, b""
        elif kind < 0.85:
            target = rng.choice(regular)
            if posixpath.normpath(target) != posixpath.normpath(name):
                yield name, {"type": tarfile.LNKTYPE, "linkname": target}, b""
        elif kind < 0.93:
            target = posixpath.relpath(
                rng.choice([*regular, "none.jpg"]), posixpath.dirname(name) or "."
            )
            yield name, {"type": tarfile.SYMTYPE, "linkname": target}, b""
        else:
            data = rng.choice(pictures)
            # of what is stored: two pieces, a hole between them
            spans = b"2\n0\n512\n%d\n%d\n" % (len(data), 700)
            fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
            fields["GNU.sparse.realsize"] = str(len(data) + 700)
            stored = spans.ljust(512, b"\0") + data[:512].ljust(512, b"\1") + b"\2" * 700
            yield name, {"pax_headers": fields}, stored


@pytest.mark.slow
def test_tars_hold_what_tar_extracts(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    pictures = [encoded(number, size=(20 + number, 9)) for number in range(6)]
    ended = time.monotonic() + 50
    for seed in range(400):
        if time.monotonic() > ended:
            break
        rng, path, folder = random.Random(seed), tmp_path / f"{seed}.tar", tmp_path / f"out{seed}"
        format = rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        members = list(random_members(rng, pictures))
        if any("pax_headers" in fields for _, fields, _ in members):
            format = tarfile.PAX_FORMAT
        with tarfile.open(path, "w", format=format, encoding="utf-8") as tar:
            for name, fields, data in members:
                add(tar, name, data, **fields)
        folder.mkdir()
        subprocess.run(
            ["tar", "-xPf", path, "-C", folder],
            capture_output=True,
            check=False,
            env={"LC_ALL": "C.UTF-8"},
        )
        extracted = FolderSource(str(folder))
        right = {}
        for row in extracted.listing().to_pylist():
            with suppress(OSError):  # a link to nothing
                right[row["image_id"].removesuffix(".jpg")] = extracted.read(row["location"])
        source, found = open_source(f"webdataset://{path}"), {}
        for row in source.listing().to_pylist():
            with suppress(OSError):
                found[row["image_id"]] = source.read(row["location"])
        assert found == right, seed
        shutil.rmtree(folder)
        path.unlink()
    assert seed > 100


def test_labels_are_the_numbers_beside_pictures_by_location(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    (tmp_path / "tars" / "more").mkdir(parents=True)
    one = {
        "a.jpg": encoded(1),
        "a.cls": b"3",
        "b.x.png": encoded(2, "PNG"),
        "b.x.cls": b" 0\n",
        "c.jpg": encoded(3),
    }
    write_tar(tmp_path / "tars" / "0.tar", {**one, "only.cls": b"9"})
    write_tar(tmp_path / "tars" / "more" / "1.tar", {"sub/a.jpg": encoded(4), "sub/a.cls": b"7"})
    # the key of another
    write_tar(tmp_path / "tars" / "more" / "2.tar", {"a.jpg": encoded(5), "a.cls": b"5"})
    source = WebDatasetSource(f"{tmp_path}/tars")
    labels = source.labels()
    rows = source.listing().to_pylist()
    found = {row["image_id"]: labels.get(row["location"]) for row in rows}
    assert found == {"a": 3, "b.x": 0, "c": None, "sub/a": 7, "more/2.tar/a.jpg": 5}
    assert len(labels) == 4


@pytest.mark.parametrize("label", [b"", b"one", b"-1", b"1.5", b"1 2", b"0" * 13, b"\xff"])
def test_label_that_is_no_number_is_an_error_that_names_it(
    tmp_path: Path, encoded: Callable[..., bytes], label: bytes
) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": encoded(1), "a.cls": label})
    with pytest.raises(SourceError, match="no number of a class") as error:
        WebDatasetSource(f"{tmp_path}/a.tar").labels()
    assert error.value.where.endswith("a.tar: a.cls")
