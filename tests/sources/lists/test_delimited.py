from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import TextIO

import pytest

from rdm.sources.lists.delimited import MAX_CELL_CHARS, Table, read_delimited
from rdm.sources.lists.list_layout import ListFormatError

WANTED = {"url", "id", "author"}
U = [f"http://h.example/{number}.jpg" for number in range(12)]


def opened(text: str) -> Callable[[], TextIO]:
    return lambda: io.StringIO(text, newline="")


def read(text: str, delimiters: str = ",;\t|") -> Table:
    return read_delimited(opened(text), delimiters, WANTED, ("url",))


def urls(text: str, delimiters: str = ",;\t|") -> list[str]:
    return read(text, delimiters).columns["url"].to_pylist()


def captioned(captions: dict[int, str]) -> str:
    return "url,caption\n" + "".join(
        f"{url},{captions.get(n, 'a bird')}\n" for n, url in enumerate(U)
    )


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({3: '"Big Bird, 6 feet'}, "the quote that opens in line 5 is not closed"),
        (
            {3: '"Big Bird', 8: '"Big Bird'},
            "the quote that opens in line 5 closes in line 10 before the cell ends",
        ),
        (
            {3: '"Big Bird', 8: 'Big Bird"'},
            "the quote that opens in line 5 closes in line 10, and the lines of",
        ),
        (
            {3: '"Big Bird', 4: 'Big Bird"'},
            "the quote that opens in line 5 closes in line 6, and the lines of",
        ),
        ({3: '"""Big" Bird'}, "the quote that opens in line 5 closes there before the cell ends"),
        ({3: '"Big Bird" '}, "the quote that opens in line 5 closes there before the cell ends"),
        (
            {3: '"He said \\"hi\\" there"'},
            "the quote that opens in line 5 closes there before the cell ends",
        ),
        ({11: '"'}, "the quote that opens in line 13 is not closed"),
        ({1: '"two\nlines"', 3: '"open'}, "the quote that opens in line 6 is not closed"),
        ({2: "big, bird"}, "line 4 has 3 cells, the first line 2"),
        ({2: "big\0bird"}, "line 4 holds a NUL byte"),
        ({2: "big\rbird"}, "line 5 has 1 cells, the first line 2"),
    ],
)
def test_row_that_hides_is_named_by_its_line(captions: dict[int, str], message: str) -> None:
    with pytest.raises(ListFormatError, match=message):
        read(captioned(captions))


@pytest.mark.parametrize(
    "caption",
    [
        '"Big ""Bird"", 6 feet"',
        '5" print',
        '"one line\nand, another"',
        '"one\r\n\r\ntwo"',
        '""',
        "",
        '"see http://a.example/,\nor not"',
        "\u2028\x85 \x0b\x1c",
    ],
)
def test_cell_in_quotes_may_hold_anything(caption: str) -> None:
    assert urls(captioned({3: caption, 7: caption})) == U


def test_caption_of_several_lines_may_come_first() -> None:
    rows = "".join(f'"a bird, big\nand red","x",{url}\n' for url in U)
    assert urls(f"caption,id,url\n{rows}") == U


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_line_ends_of_every_system_and_mixed(end: str) -> None:
    text = captioned({})
    assert urls(text.replace("\n", end)) == U
    assert urls(text.replace("\n", end, 6)) == U
    assert urls(text.rstrip("\n")) == U


def test_blank_lines_are_no_rows() -> None:
    assert urls("\n" + captioned({}).replace("\n", "\n \n\n")) == U


def test_cell_of_three_megabytes_is_read() -> None:
    big = "alt text " * 350_000
    assert urls(captioned({5: big})) == U
    assert urls(captioned({5: f'"{big}\n{big}"'})) == U


def test_open_quote_does_not_take_the_whole_file_into_memory() -> None:
    line = "x" * 1_000_000 + "\n"
    with pytest.raises(
        ListFormatError, match="the cell that begins in line 5 has over 64000000 characters"
    ):
        read(captioned({3: '"' + line * (MAX_CELL_CHARS // len(line) + 9)}))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_the_one_that_parts_the_header(delimiter: str) -> None:
    rows = "".join(f"{number}{delimiter}{url}\n" for number, url in enumerate(U))
    table = read(f"id{delimiter}url\n{rows}")
    assert table.columns["url"].to_pylist() == U
    assert table.columns["id"].to_pylist() == [str(number) for number in range(12)]


def test_excel_may_tell_the_delimiter() -> None:
    assert urls("sep=;\r\nurl;caption\r\n" + "".join(f"{url};a, b\r\n" for url in U)) == U


def test_commas_in_the_urls_of_a_table_of_one_column_are_theirs() -> None:
    odd = [f"{url}?crop=2669,1999,x0,y0&fit=a;b" for url in U]
    assert urls("url\n" + "\n".join(odd)) == odd
    assert urls("url\n" + "\n".join(f'"{url}"' for url in odd)) == odd


@pytest.mark.parametrize("cell", [f"{U[1]},a bird", f"{U[1]}\ta bird", f"{U[1]}; a"])
def test_table_of_one_column_does_not_take_several_cells_for_a_url(cell: str) -> None:
    with pytest.raises(ListFormatError, match="line 3 has several cells, the first line one"):
        read(f"url\n{U[0]}\n{cell}\n")


@pytest.mark.parametrize("glue", ["", ",", " ", '"', ";", "."])
def test_url_that_lost_its_line_end_is_named(glue: str) -> None:
    with pytest.raises(ListFormatError, match=r"line 2 holds two URLs|line 2 has several cells"):
        read(f"url\n{U[0]}{glue}{U[1]}\n{U[2]}\n")


def test_urls_within_urls_are_no_second_ones() -> None:
    inner = [
        "web.archive.org/web/2020/http://a/b.jpg",
        "i.example/?url=http://a/b.jpg",
        "i.example/x%3Dhttp://a.jpg",
    ]
    found = [f"https://{url}" for url in inner]
    assert urls("url\n" + "\n".join(found)) == found


def test_url_may_not_hold_a_line_end() -> None:
    with pytest.raises(ListFormatError, match="the URL that begins in line 2 holds a line end"):
        read('url,caption\n"http://h.example/a\n.jpg",a bird\n')


@pytest.mark.parametrize(
    ("row", "delimiters"),
    [("a caption\t{}", "\t,"), ("{}\ta caption, red", "\t,"), ("{},a b", ",;")],
)
def test_header_may_be_missing_where_one_cell_is_a_url(row: str, delimiters: str) -> None:
    assert urls("".join(row.format(url) + "\n" for url in U), delimiters) == U


def test_captions_between_tabs_use_quotes_as_characters() -> None:
    captions = ['"the bird" is the word', '5" print', '"open', 'close"', '"whole ""cell"""', '"']
    rows = "".join(f"{caption}\t{url}\n" for caption, url in zip(captions * 2, U, strict=True))
    assert urls(rows, "\t") == U
    table = read_delimited(opened("author\turl\n" + rows), "\t", WANTED, ("url",))
    assert table.columns["author"].to_pylist()[:6] == [*captions[:4], 'whole "cell"', '"']


def test_cells_in_quotes_may_hold_tabs_and_lines_between_tabs() -> None:
    rows = "".join(f'"a\tbird\nor two"\t{url}\n' for url in U)
    assert urls(f"caption\turl\n{rows}", "\t") == U


def test_ragged_row_between_tabs_is_named() -> None:
    with pytest.raises(ListFormatError, match="line 3 has 1 cells, the first line 2"):
        read(f"{U[0]}\ta\n{U[1]}\tb\n{U[2]}\n", "\t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        (
            '"url,caption\nhttp://a,b\n',
            "the quote that opens in line 1, the first one, is not closed",
        ),
        ("http://a,http://b\n", "line 1 may be a URL or several cells"),
        ("a b,http://a,http://b\n", "line 1 has 2 cells that are URLs: add a header"),
        ("url,URL \nhttp://a,http://b\n", "two columns are called url"),
        ("see http://a and,b\n", "line 1 is no header"),
    ],
)
def test_first_line_that_tells_no_layout_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ListFormatError, match=message):
        read(text)


def test_table_without_urls_has_no_cells_of_several_rows() -> None:
    rows = [f"{number},0.1,0.2" for number in range(6)]
    rows[2], rows[4] = '2,"0.1,0.2', '4,0.1,0.2"'
    with pytest.raises(
        ListFormatError, match="the quote that opens in line 4 closes in line 6, and the lines"
    ):
        read_delimited(opened("id,x0,x1\n" + "\n".join(rows)), ",", {"id", "x0", "x1"})
    swallowed = "id,note,x\n" + '1,a,1\n2,"b,2\n3,c",3\n'
    with pytest.raises(ListFormatError, match="the lines of this cell look like rows"):
        read_delimited(opened(swallowed), ",", {"id", "x"})


def test_columns_that_nobody_wants_are_not_read() -> None:
    table = read_delimited(opened("link,note\nx,y\n"), ",", WANTED, ("url",))
    assert (table.columns, table.titles) == ({}, ("link", "note"))


def test_missing_values_of_other_tools_are_empty() -> None:
    table = read("url,author\nhttp://a,NA\nhttp://b,null\nhttp://c,Nat\n")
    assert table.columns["author"].to_pylist() == ["", "", "Nat"]


def mutated_list(seed: int) -> tuple[str, str, int]:
    """Return a damaged CSV or TSV, what it ends with, and how many rows were in it; no line end is
    touched."""
    rng = random.Random(seed)
    suffix = rng.choice(["csv", "csv", "tsv"])
    delimiter = "\t" if suffix == "tsv" else rng.choice(",,;")
    words = [
        "a bird",
        "big, red",
        "5 feet",
        'the "owl"',
        "",
        "ein V\u00f6gelchen",
        "two\nlines",
        "x; y",
    ]
    columns = rng.choice([["url"], ["url", "caption"], ["caption", "url"], ["id", "url", "author"]])
    rows = []
    for number in range(rng.randint(3, 14)):
        cells = {"url": f"http://h.example/{number}.jpg", "id": f"{number:04d}"}
        values = [cells.get(name, rng.choice(words)) for name in columns]
        quoted = [
            f'"{v.replace(chr(34), chr(34) * 2)}"' if set(v) & {'"', delimiter, "\n"} else v
            for v in values
        ]
        rows.append(delimiter.join(quoted))
    text = "\n".join([delimiter.join(columns), *rows]) + "\n"

    for _ in range(rng.randint(1, 4)):
        edges = [at for at, character in enumerate(text) if character in f"{delimiter}\n"]
        edges += [at + 1 for at in edges[:-1]]
        place = rng.choice([rng.randrange(len(text)), rng.choice(edges)])
        character = rng.choice(
            ['"', '"', '"', '""', delimiter, "'", "\\", "\r", "\0", "x", "\ufeff", " ", "\u2028"]
        )
        keeps = 0 if text[place : place + 1] == "\n" else rng.randint(0, 1)  # insert, or replace
        text = text[:place] + character + text[place + keeps :]
    return text, suffix, len(rows)


@pytest.mark.slow
def test_damaged_lists_never_lose_a_row_in_silence() -> None:
    whole = 0
    for seed in range(2000):
        text, suffix, count = mutated_list(seed)
        try:
            found = len(urls(text, "\t,;|" if suffix == "tsv" else ",;\t|"))
        except (ListFormatError, KeyError):  # KeyError: the header names no column url any more
            continue
        assert found >= count, f"seed {seed}: {found} of {count} rows\n{text}"
        whole += 1
    assert whole > 200  # the reader does not refuse everything
