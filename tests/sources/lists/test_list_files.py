from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdm.errors import SourceError
from rdm.sources.lists.list_files import list_parts, read_lines, read_list

URL = ("url", "image_url")
WANTED = {*URL, "id", "author"}
U = [f"http://h.example/{number}.jpg" for number in range(6)]
CSV = "url,author\n" + "".join(f"{url},\u00c5sa {n}\n" for n, url in enumerate(U))


def urls(path: Path) -> list[str]:
    columns = read_list(path, WANTED, url=URL).columns
    return columns.get("url", columns.get("image_url")).to_pylist()  # type: ignore[union-attr]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def part(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read_list(path, WANTED, url=URL)
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["l.csv", "l.csv.gz"])
def test_text_is_read_in_the_encoding_that_its_mark_tells(
    tmp_path: Path, name: str, encoding: str
) -> None:
    data = CSV.encode(encoding)
    path = write(tmp_path / name, gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    columns = read_list(path, WANTED, url=URL).columns
    assert columns["url"].to_pylist() == U
    assert columns["author"].to_pylist() == [f"\u00c5sa {number}" for number in range(6)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "url\n".encode("utf-16-le"),
            "line 1 holds a NUL byte: the file is damaged, or UTF-16 without a mark",
        ),
        (CSV.encode("utf-16")[:-5], "is not UTF-16"),
        (CSV.encode("latin-1"), "line 2 is not UTF-8"),
        (CSV.encode() + b"\xff", "line 8 is not UTF-8"),
        (CSV.encode().replace(b"\n", b"\r") + b"\xff", "line 8 is not UTF-8"),
        (gzip.compress(CSV.encode(), mtime=0)[:-9], "the gzip file is damaged or cut short"),
        (
            gzip.compress(CSV.encode(), mtime=0)[:-12] + bytes(12),
            "the gzip file is damaged or cut short",
        ),
        (b"", "it is empty"),
        (
            f'url,id\n{U[0]}?token=secret,"1\n'.encode(),
            "the quote that opens in line 2 is not closed",
        ),
        (b"link,id\nsecret,1\n", "the list has no column url: it has link, id"),
        (b"tp://h/?token=secret,x\n", "the list has no column url: it has x"),
    ],
)
def test_damaged_text_names_its_line_and_quotes_no_secret(
    tmp_path: Path, data: bytes, message: str
) -> None:
    assert message in refused(write(tmp_path / "l.csv", data))


def test_text_list_takes_one_url_a_line(tmp_path: Path) -> None:
    odd = [
        "http://h/a.jpg?crop=1,2&amp;w=3",
        "http://h/caf\u00e9/\u5199\u771f 2.jpg",
        "HTTP://h/b\u2028c.jpg",
    ]
    text = f'\ufeffurl\r\n{odd[0]}\r\n"{odd[1]}"\r# no\n\n{odd[2]}'
    assert urls(write(tmp_path / "l.txt", text)) == odd


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a caption\thttp://h/1\n", "line 1 is one of a table"),
        ("http://h/1\nhttp://h/2\tx", "line 2 is one of a table"),
        ("url,caption\nhttp://h/1,x", "line 1 is one of a table"),
        ("http://h/1\nhttp://h/2http://h/3\n", "line 2 holds two URLs"),
        ("http://h/1\n\0\n", "line 2 holds a NUL byte"),
    ],
)
def test_text_list_that_is_a_table_says_so(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(write(tmp_path / "l.txt", text))


def test_folder_of_parts_is_one_list(tmp_path: Path) -> None:
    for number in range(2):
        part(
            tmp_path / "laion" / f"part-0000{number}-c000.snappy.parquet",
            URL=pa.array(U[number::2], pa.large_string()).dictionary_encode(),
            TEXT=["a"] * 3,
            WIDTH=[320.0] * 3,
            author=pa.nulls(3),
        )
    write(tmp_path / "laion" / "_SUCCESS", b"")
    write(tmp_path / "laion" / ".part.crc", b"")
    write(tmp_path / "laion" / "stats.json", b"{}")
    write(tmp_path / "laion" / "part-00000-c000.snappy.parquet.md5", b"")
    table = read_list(tmp_path / "laion", WANTED, url=URL)
    assert table.columns["url"].to_pylist() == U[::2] + U[1::2]
    assert table.columns["author"].to_pylist() == [""] * 6


@pytest.mark.parametrize(
    "pattern", ["p/{0..1}.csv", "p/*.csv", "**/*.csv", "p/[01].csv", "p/{0,1}.csv"]
)
def test_pattern_names_the_parts(tmp_path: Path, pattern: str) -> None:
    for number in range(2):
        write(tmp_path / "p" / f"{number}.csv", "url\n" + "\n".join(U[number::2]))
    assert urls(tmp_path / pattern) == U[::2] + U[1::2]


def test_name_with_braces_is_taken_as_it_is_where_it_exists(tmp_path: Path) -> None:
    assert urls(write(tmp_path / "{0,1}.txt", U[0])) == [U[0]]


def test_pattern_that_names_missing_files_says_which(tmp_path: Path) -> None:
    write(tmp_path / "0.csv", "url\n" + U[0])
    assert "2 of the files of the pattern do not exist\n  where: " + str(
        tmp_path / "1.csv"
    ) in refused(tmp_path / "{0..2}.csv")
    assert "the list does not exist" in refused(tmp_path / "x{0..2}.csv")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the folder holds no list: nothing"),
        (["a.jpg", "b.jpg", "c.json"], "the folder holds no list: 2 .jpg, 1 .json"),
        (["a.csv", "b.parquet"], "the folder holds lists of several kinds: 1 .csv, 1 .parquet"),
        (["a.parquet", "b.parquet.crdownload"], "a file is not whole"),
        (["a.csv", "sub/b.csv.tmp"], "a file is not whole"),
    ],
)
def test_folder_without_one_list_says_what_was_found(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        write(tmp_path / "list" / name, U[0])
    (tmp_path / "list").mkdir(exist_ok=True)
    assert message in refused(tmp_path / "list")


def test_part_of_another_list_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "l" / "a.csv", f"url,id\n{U[0]},1\n")
    write(tmp_path / "l" / "b.csv", f"url\n{U[1]}\n")
    assert "a part of the list has other columns than a.csv: url" in refused(tmp_path / "l")


def test_part_without_urls_is_named(tmp_path: Path) -> None:
    part(tmp_path / "l" / "a.parquet", url=U)
    part(tmp_path / "l" / "b.parquet", link=U)
    assert f"no column url: it has link\n  where: {tmp_path}/l/b.parquet" in refused(tmp_path / "l")


def test_parquet_of_an_unusable_kind_says_so(tmp_path: Path) -> None:
    assert "holds list<element: string>, which is no text" in refused(
        part(tmp_path / "a.parquet", url=[[U[0]]])
    )
    assert "two columns are called url" in refused(part(tmp_path / "b.parquet", url=U, URL=U))
    cut = part(tmp_path / "c.parquet", url=U).read_bytes()[:-20]
    assert "the Parquet file is damaged" in refused(write(tmp_path / "c.parquet", cut))


def test_numbers_and_missing_ids_of_parquet_are_text(tmp_path: Path) -> None:
    path = part(tmp_path / "a.parquet", image_url=U, id=pa.array([1, None, 3, 4, 5, 6]))
    assert read_list(path, WANTED, url=URL).columns["id"].to_pylist() == [
        "1",
        "",
        "3",
        "4",
        "5",
        "6",
    ]


@pytest.mark.parametrize("name", ["l.json", "l.xlsx", "l.parquet.gz", "l"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    assert "a list ends with one of .txt, .csv, .tsv, .parquet" in refused(
        write(tmp_path / name, U[0])
    )


def test_lines_are_those_that_hold_something(tmp_path: Path) -> None:
    text = "\ufeffa.jpg\r\n\r\n b\u2028c.jpg \n#d\rx\x85y"
    assert read_lines(write(tmp_path / "ids.txt", text)) == [
        "a.jpg",
        "b\u2028c.jpg",
        "#d",
        "x\x85y",
    ]
    with pytest.raises(SourceError, match="line 2 holds a NUL byte"):
        read_lines(write(tmp_path / "ids.txt", b"a\n\0\0"))
    assert list_parts(tmp_path / "ids.txt") == [tmp_path / "ids.txt"]
