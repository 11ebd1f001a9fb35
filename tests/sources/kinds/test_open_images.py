from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.errors import SourceError, UsageError
from rdm.sources import open_source
from rdm.sources.fetching.rounds import Candidate
from rdm.sources.kinds.open_images import OpenImagesSource
from rdm.sources.source import fingerprint

HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
    "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation\n"
)
CC = "https://creativecommons.org/licenses/by/2.0/"
CSV = HEADER + "".join(
    f"{image_id},{subset},http://f.example/{image_id}_o.jpg,http://f.example/{image_id},{CC},http://f.example/ann,"
    f'"Ann, A.","A title, with ""quotes""",1234,{image_id}md5==,,{rotation}\n'
    for image_id, subset, rotation in [
        ("0c", "validation", "270.0"),
        ("0a", "validation", "0.0"),
        ("0b", "validation", ""),
        ("0d", "train", "90.0"),
    ]
)
PATH = "/openimages/2018_04/validation/validation-images-with-rotation.csv"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder of metadata in the published layout."""
    path = tmp_path / PATH.lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_text(CSV, encoding="utf-8")
    return tmp_path / "openimages"


def rows(base: object, more: str = "") -> list[dict[str, Any]]:
    return open_source(f"openimages://validation?metadata={base}{more}").listing().to_pylist()


def test_listing_has_the_split_sorted_with_credits(base: Path) -> None:
    listing = rows(base)
    assert [row["image_id"] for row in listing] == ["0a", "0b", "0c"]
    assert {
        name: listing[0][name]
        for name in ("location", "author", "title", "license", "landing_page", "checksum")
    } == {
        "location": "http://f.example/0a_o.jpg",
        "author": "Ann, A.",
        "title": 'A title, with "quotes"',
        "license": CC,
        "landing_page": "http://f.example/0a",
        "checksum": "0amd5==",
    }


def test_rotation_is_kept_and_none_where_nobody_knows(base: Path) -> None:
    assert [row["rotation"] for row in rows(base)] == [0, 0, 270]


def test_limit_takes_the_first_by_id(base: Path) -> None:
    assert [row["image_id"] for row in rows(base, "&limit=2")] == ["0a", "0b"]


def test_ids_choose_and_one_that_is_unknown_stays_in_the_list(base: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("validation/0c\n0z\n")
    listing = rows(base, f"&ids={tmp_path}/ids.txt")
    assert [(row["image_id"], row["location"]) for row in listing] == [
        ("0c", "http://f.example/0c_o.jpg"),
        ("0z", ""),
    ]


def test_metadata_comes_from_the_web_once(
    server: Any, answer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDM_CACHE", str(tmp_path / "cache"))
    server.serve(PATH, answer(CSV.encode(), headers={"ETag": "1"}), answer(status=304))
    source = OpenImagesSource(f"validation?metadata={server.url}/openimages")
    assert fingerprint(source.listing()) == fingerprint(source.listing())
    assert server.requests[PATH] == 2


def test_mirror_goes_first_and_the_original_has_a_checksum(base: Path) -> None:
    source = OpenImagesSource(f"validation?metadata={base}&mirror=http://m.example/bucket/")
    assert source.candidates(source.listing().to_pylist()[0]) == (
        Candidate("http://m.example/bucket/validation/0a.jpg"),
        Candidate("http://f.example/0a_o.jpg", "0amd5=="),
    )


def test_without_a_mirror_there_is_the_original_alone(base: Path) -> None:
    source = OpenImagesSource(f"validation?metadata={base}&mirror=")
    assert source.candidates(source.listing().to_pylist()[0]) == (
        Candidate("http://f.example/0a_o.jpg", "0amd5=="),
    )


def test_photograph_outside_the_metadata_has_no_candidate(base: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("0z\n")
    source = OpenImagesSource(f"validation?metadata={base}&ids={tmp_path}/ids.txt")
    assert source.candidates(source.listing().to_pylist()[0]) == ()


def test_id_cannot_lead_out_of_the_mirror(base: Path) -> None:
    source = OpenImagesSource(f"validation?metadata={base}&mirror=http://m.example")
    entry = {"image_id": "../x?y", "location": "http://f.example/x", "checksum": ""}
    assert source.candidates(entry)[0] == Candidate("http://m.example/validation/..%2Fx%3Fy.jpg")


@pytest.mark.parametrize(
    "change", [("0a_o.jpg", "0a_p.jpg"), ("0amd5", "0axd5"), ("270.0", "90.0")]
)
def test_new_original_or_rotation_changes_the_fingerprint(
    base: Path, change: tuple[str, str]
) -> None:
    source = OpenImagesSource(f"validation?metadata={base}")
    before = fingerprint(source.listing())
    path = base / PATH.removeprefix("/openimages/")
    path.write_text(CSV.replace(*change), encoding="utf-8")
    assert fingerprint(source.listing()) != before


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "no split ''"),
        ("dev", "no split 'dev'"),
        ("test?limit=many", "does not understand limit"),
        ("test?size=3", "does not understand size"),
        ("test?limit", "write name=value"),
        ("test?mirror=ftp://m.example", "mirror is not a URL"),
        ("test?metadata=https://me:secret@m.example", "metadata is not a URL"),
    ],
)
def test_wrong_specification_is_a_usage_error(rest: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(f"openimages://{rest}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("ImageID,Rotation\n0a,0.0\n", "no column OriginalURL"), ("", "cannot be read")],
)
def test_other_files_are_not_metadata(base: Path, text: str, message: str) -> None:
    (base / PATH.removeprefix("/openimages/")).write_text(text)
    with pytest.raises(SourceError, match=message):
        rows(base)


def test_missing_metadata_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the list does not exist"):
        rows(tmp_path)


def test_row_of_no_split_is_an_error(base: Path) -> None:
    (base / PATH.removeprefix("/openimages/")).write_text(
        CSV.replace("0b,validation", "0b,valid\u00fbtion")
    )
    with pytest.raises(SourceError, match="the metadata has 1 rows of no split"):
        rows(base)


def test_rows_between_two_stray_quotes_are_an_error(base: Path) -> None:
    text = CSV.replace(",1234,0camd5==", ',"1234,0camd5==').replace(
        ",1234,0cmd5==", ',"1234,0cmd5=='
    )
    (base / PATH.removeprefix("/openimages/")).write_text(
        text.replace(",1234,0bmd5==,,", ',1234,0bmd5==,,"')
    )
    with pytest.raises(
        SourceError, match="the list cannot be read: the quote that opens in line 2"
    ):
        rows(base)


def test_ids_may_have_a_mark_and_any_line_ends(base: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes("\ufeff0c\r0a\r\n".encode())
    assert [row["image_id"] for row in rows(base, f"&ids={tmp_path}/ids.txt")] == ["0a", "0c"]
