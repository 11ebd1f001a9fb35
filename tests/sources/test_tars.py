from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rdm.errors import SourceError
from rdm.sources import decode_image, open_source


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
    assert read == [members["0000.jpg"], members["0001.jpg"], members["0002.jpg"], encoded(7, "PNG")]
    assert all(decode_image(data).size == (48, 40) for data in read)


def test_the_beginning_of_a_picture_ends_with_the_picture(tmp_path: Path, members: dict[str, bytes]) -> None:
    source = open_source(f"webdataset://{write_tar(tmp_path / 'a.tar', members)}")
    location = source.listing()["location"][0].as_py()
    assert source.read(location, 10) == members["0000.jpg"][:10]
    assert source.read(location, 10**6) == members["0000.jpg"]


def test_single_tar_with_any_name(tmp_path: Path, members: dict[str, bytes]) -> None:
    source = open_source(f"webdataset://{write_tar(tmp_path / 'photos.wds', members)}")
    assert source.read(source.listing()["location"][1].as_py()) == members["0001.jpg"]


def test_long_names_have_the_right_offset(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    source = open_source(f"webdataset://{write_tar(tmp_path / 'a.tar', {'n' * 150 + '.jpg': encoded(0)})}")
    assert source.read(source.listing()["location"][0].as_py()) == encoded(0)


def test_missing_dataset_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(f"webdataset://{tmp_path}/none.tar")


def test_folder_without_tars_says_what_is_in_it(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "list.parquet"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"no \.tar in the folder or below, .* 2 \.jpg, 1 \.parquet") as caught:
        open_source(f"webdataset://{tmp_path}").listing()
    assert "folder://DIR" in caught.value.fix


def test_tars_of_folders_below_come_last_and_are_read_in_place(tmp_path: Path, members: dict[str, bytes]) -> None:
    other = {name: data + b" " for name, data in members.items()}
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_tar(tmp_path / "a" / "b" / "0.tar", other)
    write_tar(tmp_path / "z.TAR", members)
    write_tar(tmp_path / "._z.tar", other)
    source = open_source(f"webdataset://{tmp_path}")
    rows = {row["image_id"]: row["location"] for row in source.listing().to_pylist()}
    assert list(rows) == ["0000", "0001", "0002", *(f"a/b/0.tar/000{number}.jpg" for number in range(3))]
    assert source.read(rows["0001"]) == members["0001.jpg"]
    assert source.read(rows["a/b/0.tar/0001.jpg"]) == other["0001.jpg"]


@pytest.mark.parametrize(
    "pattern", ["{000..001}.tar", "*/00[01].tar", "d/{000,001}.tar", "**/00?.tar", "{d/000,d/001}.tar"]
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


def test_pattern_that_names_missing_tars_says_which(tmp_path: Path, members: dict[str, bytes]) -> None:
    write_tar(tmp_path / "000.tar", members)
    with pytest.raises(SourceError, match="2 of the tars of the pattern do not exist") as caught:
        open_source(f"webdataset://{tmp_path}/{{000..002}}.tar")
    assert caught.value.where == str(tmp_path / "001.tar")
    with pytest.raises(SourceError, match="the WebDataset does not exist"):
        open_source(f"webdataset://{tmp_path}/{{100..102}}.tar")


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "sub/b.tar.zst"])
def test_compressed_tars_in_a_folder_are_not_passed_over(tmp_path: Path, members: dict[str, bytes], name: str) -> None:
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
def test_every_usual_ending_of_a_picture_is_taken(tmp_path: Path, members: dict[str, bytes], suffix: str) -> None:
    source = open_source(f"webdataset://{write_tar(tmp_path / 'a.tar', {f'x{suffix}': members['0000.jpg']})}")
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


def test_key_in_two_tars_belongs_to_the_first(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": encoded(0)})
    write_tar(tmp_path / "b.tar", {"0.jpg": encoded(1), "0.png": encoded(2, "PNG"), "1.jpg": encoded(3)})
    source = open_source(f"webdataset://{tmp_path}")
    read = {row["image_id"]: source.read(row["location"]) for row in source.listing().to_pylist()}
    assert read == {"0": encoded(0), "1": encoded(3), "b.tar/0.jpg": encoded(1), "b.tar/0.png": encoded(2, "PNG")}


def etags(path: Path) -> list[str]:
    return open_source(f"webdataset://{path}").listing()["etag"].to_pylist()


def test_tar_without_times_that_is_written_anew_changes_its_pictures(tmp_path: Path, members: dict[str, bytes]) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}{member}": data for member, data in members.items()})
    before = etags(tmp_path)
    assert etags(tmp_path) == before
    os.utime(tmp_path / "b.tar", ns=(1, 1))
    assert [one == other for one, other in zip(before, etags(tmp_path), strict=True)] == [True] * 3 + [False] * 3


def test_time_of_a_member_counts_where_there_is_one(tmp_path: Path, photos: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos / "p00.jpg", "0.jpg")
    before = etags(tmp_path / "a.tar")
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    assert etags(tmp_path / "a.tar") == before
