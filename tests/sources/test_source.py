from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.errors import SourceError, UsageError
from rdm.sources import open_source
from rdm.sources.open import absolute_spec, same_source
from rdm.sources.source import LISTING_SCHEMA, fingerprint, make_listing, names_picture

rows = st.lists(
    st.tuples(st.text(max_size=5), st.text(max_size=5)), unique_by=lambda row: row[0], max_size=8
)


def listing(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"image_id": name, "location": name, "etag": etag} for name, etag in pairs]


@given(rows)
def test_listing_is_sorted_complete_and_independent_of_order(pairs: list[tuple[str, str]]) -> None:
    table = make_listing(listing(pairs))
    assert table.schema == LISTING_SCHEMA
    assert table["image_id"].to_pylist() == sorted(name for name, _ in pairs)
    assert fingerprint(table) == fingerprint(make_listing(listing(pairs[::-1])))


@given(rows, rows)
def test_fingerprints_differ_exactly_when_ids_or_etags_do(
    first: list[tuple[str, str]], second: list[tuple[str, str]]
) -> None:
    same = fingerprint(make_listing(listing(first))) == fingerprint(make_listing(listing(second)))
    assert same == (sorted(first) == sorted(second))


def test_id_that_occurs_twice_is_an_error() -> None:
    with pytest.raises(SourceError, match="'a' occurs twice"):
        make_listing(listing([("a", "1"), ("b", "1"), ("a", "2")]))


def test_a_specification_of_files_becomes_absolute_and_any_other_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("folder://photos/../more") == f"folder://{tmp_path}/more"
    assert absolute_spec("webdataset:///tars") == "webdataset:///tars"
    assert (
        absolute_spec("samples://openimages-birds/queries") == "samples://openimages-birds/queries"
    )
    assert absolute_spec("photos") == "photos"
    options = "limit=5&metadata=https://example.org/a&ids="
    assert (
        absolute_spec(f"openimages://test?{options}a%20b.txt")
        == f"openimages://test?{options}{tmp_path}/a%20b.txt"
    )
    assert (
        absolute_spec(f"openimages://test?{options}/b+c.txt")
        == f"openimages://test?{options}/b+c.txt"
    )
    assert absolute_spec("openimages://test") == "openimages://test"


@pytest.mark.parametrize("scheme", ["folder", "webdataset", "urls"])
def test_scheme_without_a_path_is_refused(scheme: str) -> None:
    with pytest.raises(UsageError, match=f"{scheme}:// names no path"):
        open_source(absolute_spec(f"{scheme}://"))


@pytest.mark.parametrize("spec", ["nonsense://x", "", "folder:/x", "http://example.org/x.jpg"])
def test_unknown_scheme_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(UsageError, match="is not a source") as caught:
        open_source(spec)
    assert (
        caught.value.fix
        == "sources: samples://, folder://, webdataset://, database://, urls://, openimages://"
    )


def test_plain_path_gets_a_hint() -> None:
    with pytest.raises(UsageError, match=r"did you mean folder:///photos\?"):
        open_source("/photos")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("a.jpg", True),
        ("a/b.PNG", True),
        ("12:30.jpg", True),
        ("x.tar:512:99", True),
        ("x:512:99", True),
        ("notes.txt", False),
        ("x.tar", False),
        ("jpg", False),
        ("12:30.txt", False),
    ],
)
def test_pictures_are_known_by_name(location: str, expected: bool) -> None:
    assert names_picture(location) is expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "openimages://test?limit=5&mirror=http://a.com",
            "openimages://test?mirror=http://b.com&limit=5",
            True,
        ),
        ("openimages://test?mirror=", "openimages://test", True),
        ("openimages://test?limit=5", "openimages://test?limit=6", False),
        (
            "openimages://test?metadata=http://a.example",
            "openimages://test?metadata=http://b.example",
            False,
        ),
        ("openimages://test", "openimages://train", False),
        ("folder:///a?mirror=b", "folder:///a", False),
    ],
)
def test_a_source_is_its_photographs_wherever_their_bytes_come_from(
    one: str, other: str, same: bool
) -> None:
    assert same_source(one, other) is same
