"""Captions in text files and JSON: one a line, cleaned, and nothing misread in silence."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rdm.errors import SourceError
from rdm.sources import CropConfig, QuerySet, QuerySetConfig
from rdm.sources.captions import MAX_CAPTION_BYTES, captions_of_json, captions_of_text
from rdm.sources.kinds.folder import FolderSource
from rdm.sources.kinds.webdataset import WebDatasetSource


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "captions"),
    [
        (b"a dog", ("a dog",)),
        (b"\xef\xbb\xbf a  dog\r\n\n two\tcats \n", ("a dog", "two cats")),
        (b" \n", ()),
        ("ein Vogel \u00fcber dem See".encode(), ("ein Vogel \u00fcber dem See",)),
    ],
)
def test_lines_of_a_text_file(data: bytes, captions: tuple[str, ...]) -> None:
    assert captions_of_text(data, "a.txt") == captions


@pytest.mark.parametrize(
    ("data", "captions"),
    [
        (b'{"captions": ["a dog", " ", "a  cat"]}', ("a dog", "a cat")),
        (b'{"caption": "a dog", "width": 3}', ("a dog",)),
        (b'{"caption": null, "width": 3}', ()),
        (b'{"width": 3}', ()),
        (b"[1, 2]", ()),
    ],
)
def test_captions_of_json(data: bytes, captions: tuple[str, ...]) -> None:
    assert captions_of_json(data, "a.json") == captions


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (captions_of_text, b"\xff\xfe"),
        (captions_of_text, b"a" * (MAX_CAPTION_BYTES + 1)),
        (captions_of_json, b"{"),
        (captions_of_json, b'{"captions": "a dog"}'),
        (captions_of_json, b'{"captions": [3]}'),
        (captions_of_json, b'{"caption": 3}'),
    ],
)
def test_what_is_no_caption_is_an_error_that_names_the_file(
    read: Callable[[bytes, str], tuple[str, ...]], data: bytes
) -> None:
    with pytest.raises(SourceError) as error:
        read(data, "a.tar: k.json")
    assert error.value.where == "a.tar: k.json"


def test_captions_of_a_tar_are_those_of_json_else_of_text(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    members = {
        "a.jpg": encoded(1),
        "a.json": b'{"captions": ["from json"]}',
        "a.txt": b"from text",
        "b.png": encoded(2, "PNG"),
        "b.json": b'{"width": 48}',
        "b.txt": b"from text\nand more",
        "c.jpg": encoded(3),
        "d.txt": b"of no picture",
    }
    write_tar(tmp_path / "a.tar", members)
    source = WebDatasetSource(f"{tmp_path}/a.tar")
    said = source.captions()
    rows = source.listing().to_pylist()
    found = {row["image_id"]: said.get(row["location"]) for row in rows}
    assert found == {"a": ("from json",), "b": ("from text", "and more"), "c": None}
    assert len(said) == 2


def test_captions_of_a_folder_are_beside_the_pictures(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.b.jpg").write_bytes(encoded(1))
    (tmp_path / "sub" / "a.b.txt").write_text("a dog\na cat\n")
    (tmp_path / "c.jpg").write_bytes(encoded(2))
    (tmp_path / "d.txt").write_text("of no picture")
    assert FolderSource(str(tmp_path)).captions() == {"sub/a.b.jpg": ("a dog", "a cat")}


def test_captions_that_lead_out_of_a_folder_are_refused(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    (tmp_path / "secret.txt").write_text("a secret")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(encoded(1))
    (photos / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(SourceError, match="leads out of the folder"):
        FolderSource(str(photos)).captions()


def test_a_query_set_has_captions_by_photograph(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": encoded(1), "a.txt": b"a dog", "b.jpg": encoded(2)})
    config = QuerySetConfig(source=f"webdataset://{tmp_path}", crop=CropConfig(mode="whole"))
    assert QuerySet(config).captions() == {"a": ("a dog",)}


def test_a_source_without_captions_says_so() -> None:
    config = QuerySetConfig(source="samples://openimages-birds/queries")
    with pytest.raises(SourceError, match="has no captions"):
        QuerySet(config).captions()
