from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.errors import SourceError
from rdm.sources import open_source
from rdm.sources.kinds.url_list import UrlListSource
from rdm.sources.source import fingerprint

A, B = "http://example.org/a.jpg", "http://example.org/b.jpg"
CSV = (
    "url,id,author,Licence,landing-page,Title,rating\n"
    f'{B},2,"Bo, B.",CC,http://example.org/b,A crow,5\n'
    f"{A},1,,,,,\n"
)


def listing(path: Path) -> list[dict[str, object]]:
    return open_source(f"urls://{path}").listing().to_pylist()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_text_list_has_one_url_per_line(tmp_path: Path) -> None:
    rows = listing(write(tmp_path / "l.txt", f"# birds\n{B}\n\n  {A}  \n"))
    assert [row["location"] for row in rows] == [A, B]
    assert [row["image_id"] for row in rows] == [A, B]


def test_csv_list_keeps_ids_and_credits(tmp_path: Path) -> None:
    first, second = listing(write(tmp_path / "l.csv", CSV))
    assert (first["image_id"], first["location"], first["author"]) == ("1", A, "")
    assert [second[name] for name in ("image_id", "location")] == ["2", B]
    names = ("author", "title", "license", "landing_page")
    assert [second[name] for name in names] == ["Bo, B.", "A crow", "CC", "http://example.org/b"]


def test_parquet_list_with_numbers_and_further_columns(tmp_path: Path) -> None:
    table = pa.table({"id": [20, 10], "url": [B, A], "boxes": [[1, 2], [3]]})
    pq.write_table(table, tmp_path / "l.parquet")
    assert [(row["image_id"], row["location"]) for row in listing(tmp_path / "l.parquet")] == [
        ("10", A),
        ("20", B),
    ]


def test_row_without_an_id_is_called_by_its_url(tmp_path: Path) -> None:
    rows = listing(write(tmp_path / "l.csv", f"url,id\n{B},\n{A},1\n"))
    assert [row["image_id"] for row in rows] == ["1", B]


def test_line_that_is_there_twice_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = listing(write(tmp_path / "l.csv", f"url,author\n{A},Ann\n{B},Bo\n{A}#top,Cy\n"))
    assert [(row["image_id"], row["author"]) for row in rows] == [(A, "Ann"), (B, "Bo")]
    assert "name a photograph again, left out: 1" in caplog.text


def test_new_token_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "l.txt", f"{A}?size=2&token=one")
    before = fingerprint(UrlListSource(str(path)).listing())
    write(path, f"{A}?size=2&token=two")
    assert fingerprint(UrlListSource(str(path)).listing()) == before


def test_row_without_an_etag_changes_with_its_url(tmp_path: Path) -> None:
    texts = (f"id,url,etag\n1,{A},\n", f"id,url,etag\n1,{B},\n")
    assert len({listing(write(tmp_path / "l.csv", text))[0]["etag"] for text in texts}) == 2


def test_new_url_or_etag_changes_the_photograph(tmp_path: Path) -> None:
    texts = (
        f"id,url\n1,{A}\n",
        f"id,url\n1,{B}\n",
        f"id,url,etag\n1,{A},v1\n",
        f"id,url,etag\n1,{A},v2\n",
    )
    assert len({listing(write(tmp_path / "l.csv", text))[0]["etag"] for text in texts}) == 4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "link,id\nx,1\n", "no column url"),
        ("l.csv", f"url,id\n{A}?token=abc,1,2,3\n", "cannot be read"),
        ("l.parquet", "words", "cannot be read"),
        ("l.csv", f"url,URL\n{A}?token=abc,{B}\n", "two columns are called url"),
        ("l.csv", f"url,url\n{A}?token=abc,{B}\n", "two columns are called url"),
        ("l.json", "{}", "ends with one of .txt, .csv, .tsv, .parquet"),
        ("l.csv", f"url,id\n{A}?token=abc,1\n{B}?token=abc,1\n", "the image id '1' occurs twice"),
    ],
)
def test_unusable_list_is_an_error_that_quotes_no_secret(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        listing(write(tmp_path / name, text))
    assert "abc" not in str(caught.value)


def test_missing_list_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(f"urls://{tmp_path}/none.csv")


def test_empty_list_lists_nothing(tmp_path: Path) -> None:
    assert listing(write(tmp_path / "l.txt", "\n")) == []


def test_single_photographs_are_not_read(tmp_path: Path) -> None:
    source = open_source(f"urls://{write(tmp_path / 'l.txt', A)}")
    with pytest.raises(SourceError, match="only into a database") as caught:
        source.read(A)
    assert "database://DB" in caught.value.fix


@given(st.sampled_from(["l.csv", "l.txt", "l.parquet"]), st.data())
def test_damaged_list_is_read_or_a_source_error(
    lists: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    whole = lists[name]
    start = data.draw(st.integers(0, len(whole)))
    damaged = (
        whole[:start]
        + data.draw(st.binary(max_size=4))
        + whole[start + data.draw(st.integers(0, 9)) :]
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(damaged)
        with contextlib.suppress(SourceError):
            UrlListSource(f"{folder}/{name}").listing()


@pytest.fixture(scope="module")
def lists() -> dict[str, bytes]:
    """The bytes of one good list of each kind."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": [A, B], "id": [1, 2], "author": ["Bo", None]}), buffer)
    return {"l.csv": CSV.encode(), "l.txt": f"{A}\n{B}\n".encode(), "l.parquet": buffer.getvalue()}
