from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rdm.errors import SourceError
from rdm.sources import FetchConfig, open_source
from rdm.sources.kinds.local import RefusedFileError
from rdm.sources.source import names_picture


def listed(folder: Path) -> list[str]:
    return open_source(f"folder://{folder}").listing()["image_id"].to_pylist()


def test_nested_files_are_listed_sorted_with_their_relative_path(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.JPG", "a/b/c.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    assert listed(tmp_path) == ["a/b/c.png", "a/z.JPG", "b.jpg", "notes.txt"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / "lost+found").mkdir()  # at the root of a disk
    for name in (".a.jpg", ".cache/b.jpg", "lost+found/d.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"1")
    assert listed(tmp_path) == ["c.jpg"]


def test_empty_folder_lists_nothing(tmp_path: Path) -> None:
    assert listed(tmp_path) == []


def test_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist") as caught:
        open_source(f"folder://{tmp_path}/none")
    assert caught.value.where == f"{tmp_path}/none"
    assert "an absolute path has three slashes" in caught.value.fix


def test_file_instead_of_a_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"1")
    with pytest.raises(SourceError, match="this is a file"):
        open_source(f"folder://{tmp_path}/x.jpg")


def test_etag_changes_when_the_file_does(tmp_path: Path) -> None:
    source = open_source(f"folder://{tmp_path}")
    (tmp_path / "x.jpg").write_bytes(b"1")
    before = source.listing()["etag"].to_pylist()
    assert source.listing()["etag"].to_pylist() == before
    os.utime(tmp_path / "x.jpg", ns=(1, 1))
    assert source.listing()["etag"].to_pylist() != before


def test_read_gives_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"abc")
    assert open_source(f"folder://{tmp_path}").read("a/x.jpg") == b"abc"


def test_location_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "secret").write_bytes(b"1")
    (tmp_path / "photos" / "x.jpg").symlink_to(tmp_path / "secret")
    source = open_source(f"folder://{tmp_path}/photos")
    for location in ("../secret", "x.jpg", str(tmp_path / "secret")):
        with pytest.raises(RefusedFileError, match="leads out of"):
            source.read(location)


def test_link_to_nothing_is_listed_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").symlink_to(tmp_path / "gone.jpg")
    assert listed(tmp_path) == ["x.jpg"]
    with pytest.raises(FileNotFoundError, match="the link leads to nothing"):
        open_source(f"folder://{tmp_path}").read("x.jpg")


def test_links_in_a_circle_are_listed_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").symlink_to(tmp_path / "x.jpg")
    assert listed(tmp_path) == ["x.jpg"]
    with pytest.raises(OSError, match="symbolic links"):
        open_source(f"folder://{tmp_path}").read("x.jpg")


@pytest.mark.usefixtures("bound_by_permissions")
def test_folder_that_cannot_be_read_is_an_error_and_not_empty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(SourceError, match="cannot be read: Permission denied") as caught:
        listed(tmp_path)
    (tmp_path / "a").chmod(0o755)
    assert caught.value.where == f"{tmp_path}/a"


def test_linked_folder_is_not_followed_and_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jpg").write_bytes(b"1")
    (tmp_path / "photos" / "birds.jpg").symlink_to(tmp_path / "elsewhere")
    row = open_source(f"folder://{tmp_path}/photos").listing().to_pylist()[0]
    assert (row["image_id"], row["location"], names_picture(row["location"])) == (
        "birds.jpg",
        "birds.jpg/",
        False,
    )


@pytest.mark.parametrize("rest", ["photos", "./photos/", "~/photos"])
def test_relative_path_gives_the_same_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    relative, absolute = open_source(f"folder://{rest}"), open_source(f"folder://{tmp_path}/photos")
    assert relative.spec == absolute.spec == f"folder://{tmp_path}/photos"
    assert relative.listing().equals(absolute.listing())


def test_name_that_is_not_utf8_is_listed_with_escapes(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"1")
    assert listed(tmp_path) == ["caf\\xe9.jpg"]


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.jpg").write_bytes(b"1")
    assert open_source("folder://~").listing().num_rows == 1


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JFIF", ".jif", ".pjpeg", ".mpo"])
def test_jpeg_of_every_usual_ending_is_taken(
    tmp_path: Path, encoded: Callable[..., bytes], suffix: str
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(encoded(0))
    source = open_source(f"folder://{tmp_path}")
    rows = [
        row
        for row, _ in source.take(
            source.listing().to_pylist(), tmp_path / ".scratch", FetchConfig()
        )
    ]
    assert [(row["image_id"], row["status"], row["extension"]) for row in rows] == [
        (f"a{suffix}", "success", "jpg")
    ]


@pytest.mark.parametrize("location", ["a\0b.jpg", "\ud800.jpg"])
def test_error_of_another_kind_costs_the_row_of_one_photograph(
    photos: Path, tmp_path: Path, location: str
) -> None:
    source = open_source(f"folder://{photos}")
    entries = source.listing().to_pylist()[:3]
    entries[1]["location"] = location
    rows = [row for row, _ in source.take(entries, tmp_path / "scratch", FetchConfig())]
    assert [row["status"] for row in rows] == ["success", "failed", "success"]
    assert rows[1]["image_id"] == "p01.jpg"
    assert rows[1]["error_message"].startswith("cannot be read: ")
    assert "Error: " in rows[1]["error_message"]
