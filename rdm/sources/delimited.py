"""CSV and TSV, read strictly: each row of the file is returned, or the line is named that hides one."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

MAX_CELL_CHARS = 64_000_000  # a quote that nobody closes does not take the file into memory
_BATCH_ROWS = 20_000
_SINGLE = (
    "\x1f"  # between the cells of a table of one column: commas and semicolons belong to the cell
)
_NULLS = tuple(pyarrow.csv.ConvertOptions().null_values)
_QUOTED = re.compile(r'"((?:[^"]++|"")*+)"')  # possessive: an open quote is found in linear time
_CLEAN_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_URL_WITHIN = re.compile(r"(?<![/=?:&#])(?<!%[0-9a-f]{2})https?://", re.IGNORECASE)
_SEVERAL_CELLS = re.compile(r"\t|[,;|].*\s")
_LIKE_A_URL = re.compile(r"://|^\W*h?ttps?:|^\W*www\.", re.IGNORECASE)

Row = tuple[int, Sequence[str]]
"""The line where a row begins, and its cells."""


class ListFormatError(ValueError):
    """A list in which rows may hide: the message names the line and quotes none of it."""


@dataclass(frozen=True)
class Layout:
    """The way in which a table is written.

    Args:
        delimiter: between the cells of a row.
        titles: what the header calls the columns; of a table without a header, `url` and empty names.
        header_lines: lines before the first row.
        url_column: index of the column of URLs, where there is one.
    """

    delimiter: str
    titles: tuple[str, ...]
    header_lines: int
    url_column: int | None = None

    @property
    def num_columns(self) -> int:
        """How many cells each row must have."""
        return len(self.titles)


@dataclass(frozen=True)
class Table:
    """The wanted columns of a list, as text without nulls, by name; and the titles of all of its columns."""

    columns: dict[str, pa.ChunkedArray]
    titles: tuple[str, ...]


def column_name(title: str) -> str:
    """Return a column's title in lower case, with `_` for `-` and space."""
    return title.strip().lower().replace("-", "_").replace(" ", "_")


def read_delimited(
    open_text: Callable[[], TextIO],
    delimiters: str,
    wanted: Collection[str],
    url: Sequence[str] = (),
) -> Table:
    """Return the wanted columns of a CSV or TSV.

    Where cells are kept apart by tabs, a line is a row as long as each has as many cells as the first: many lists of
    captions use quotes as ordinary characters. Everything else is read with quotes.

    Args:
        open_text: opens the file, with its line ends as they are.
        delimiters: what may be between cells, the likeliest first.
        wanted: names of columns, see `column_name`.
        url: names of the column of URLs, the preferred one first. With them, a table may lack a header.

    Raises:
        ListFormatError: a row is ragged, or a quote hides rows.
    """
    with open_text() as file:
        layout = find_layout(file, delimiters, wanted, url)
    if not any(column_name(title) in wanted for title in layout.titles):
        return Table({}, layout.titles)

    if layout.delimiter != "\t":
        return _collect(open_text, layout, quoted_rows, wanted)
    try:
        return _collect(open_text, layout, plain_rows, wanted)
    except ListFormatError as plain:
        try:
            return _collect(open_text, layout, quoted_rows, wanted)
        except ListFormatError as quoted:
            reason = "" if str(plain) == str(quoted) else f" (with quotes around cells: {quoted})"
            raise ListFormatError(f"{plain}{reason}") from None


def find_layout(
    file: TextIO, delimiters: str, wanted: Collection[str], url: Sequence[str]
) -> Layout:
    """Return the layout that the first line tells.

    Raises:
        ListFormatError: the header runs over several lines, or the file is empty, or has no header and might have any
            number of columns.
    """
    lines = Lines(file)
    first = next(filter(str.strip, lines), None)
    if first is None:
        raise ListFormatError("it is empty")
    if (
        sep := re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE)
    ) is not None:  # Excel's way to tell it
        delimiters = sep[1]
        first = next(filter(str.strip, lines), "")

    # The header is the line that names wanted columns; the delimiter that parts most of them is the one.
    options = {
        delimiter: cells
        for delimiter in delimiters
        if (cells := _cells_of(first, delimiter)) is not None
    }
    names = {delimiter: list(map(column_name, cells)) for delimiter, cells in options.items()}
    known = {delimiter: sum(name in wanted for name in found) for delimiter, found in names.items()}
    delimiter = max(options, key=lambda option: (known[option], len(options[option])), default="")
    if not any(known.values()) and delimiters[0] not in options:
        raise ListFormatError(
            f"the quote that opens in line {lines.number}, the first one, is not closed there"
        )
    if known[delimiter] == 0 and url and _CLEAN_URL.search(first):
        return _headerless(options, first, url[0], lines.number)

    titles = tuple(options[delimiter])
    check_unique([name for name in names[delimiter] if name in wanted])
    column = next((names[delimiter].index(name) for name in url if name in names[delimiter]), None)
    return Layout(delimiter if len(titles) > 1 else _SINGLE, titles, lines.number, column)


def _headerless(options: dict[str, list[str]], first: str, name: str, line: int) -> Layout:
    """Return the layout of a table that begins with a row: the cell that is a URL tells the column."""
    if _CLEAN_URL.fullmatch(first.strip().strip('"')):
        if next(iter(options)) != "\t" and any(len(cells) > 1 for cells in options.values()):
            raise ListFormatError(
                f"without a header, line {line} may be a URL or several cells: add a first line such as url,caption"
            )
        return Layout(_SINGLE, (name,), line - 1, 0)
    for delimiter, cells in options.items():
        places = [number for number, cell in enumerate(cells) if _CLEAN_URL.fullmatch(cell.strip())]
        if len(places) > 1:
            raise ListFormatError(
                f"without a header, line {line} has {len(places)} cells that are URLs: add a header"
            )
        if places:
            titles = tuple(name if number == places[0] else "" for number in range(len(cells)))
            return Layout(delimiter, titles, line - 1, places[0])
    raise ListFormatError(
        f"line {line} is no header, and none of its cells is a URL: add a header such as url,caption"
    )


def _cells_of(line: str, delimiter: str) -> list[str] | None:
    """Return the cells of a header, or None where its quotes do not agree with this delimiter."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:  # between tabs quotes may be ordinary characters
        return line.rstrip("\r\n").split("\t") if delimiter == "\t" else None


def check_unique(names: Sequence[str]) -> None:
    """Raise ListFormatError where two columns have one name."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ListFormatError(f"two columns are called {repeated}")


class Lines:
    """The lines of a text, each with its end, counted from 1; none may hold a NUL character."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.number = 0
        self._record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if "\0" in line:
            raise ListFormatError(
                f"line {self.number} holds a NUL byte: the file is damaged, or UTF-16 without a mark"
            )
        self._record.append(line)
        return line

    def take_record(self) -> list[str]:
        """Return the lines that were read since this was asked for the last time."""
        record, self._record = self._record, []
        return record


def plain_rows(lines: Lines, layout: Layout) -> Iterator[Row]:
    """Yield each line as a row. A cell in quotes, with those inside doubled, loses them; other quotes are characters.

    Raises:
        ListFormatError: a row is ragged.
    """
    for line in lines:
        lines.take_record()
        if not line.strip():
            continue
        cells = line.rstrip("\r\n").split(layout.delimiter)
        _check_count(cells, layout, lines.number)
        if (
            '"' in line
            and layout.url_column is not None
            and not _LIKE_A_URL.search(cells[layout.url_column])
        ):
            raise ListFormatError(
                f"line {lines.number} has a quote, and no URL in the column of URLs"
            )
        yield lines.number, [_without_quotes(cell) for cell in cells] if '"' in line else cells


def quoted_rows(lines: Lines, layout: Layout) -> Iterator[Row]:
    """Yield the rows of a table in which a cell in quotes may hold delimiters and line ends.

    Raises:
        ListFormatError: a row is ragged, text follows a closing quote, a quote is open at the end of the file, or a
            cell in quotes holds lines that look like rows.
    """
    # The limit is one of the process: it is only ever raised, so that no other reader is in the way.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARS))
    reader = csv.reader(lines, delimiter=layout.delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _quote_error(lines, layout.delimiter, error) from None

        record = lines.take_record()
        number = lines.number - len(record) + 1
        if len(record) > 1:
            _check_swallowed(record, layout, number)
        if not "".join(record).strip():
            continue
        if layout.delimiter == _SINGLE and not record[0].startswith('"'):
            _check_single(record[0].strip(), number)
        _check_count(cells, layout, number)
        yield number, cells


def _check_single(cell: str, number: int) -> None:
    if _SEVERAL_CELLS.search(cell):
        raise ListFormatError(
            f"line {number} has several cells, the first line one (a URL with spaces needs quotes)"
        )


def _check_count(cells: Sequence[str], layout: Layout, number: int) -> None:
    if len(cells) != layout.num_columns:
        kind = {"\t": "tabs", ";": "semicolons", "|": "bars"}.get(layout.delimiter, "commas")
        raise ListFormatError(
            f"line {number} has {len(cells)} cells, the first line {layout.num_columns}"
            + (f" (cells that hold {kind} need quotes)" if len(cells) > layout.num_columns else "")
        )


def _check_swallowed(record: Sequence[str], layout: Layout, number: int) -> None:
    """Raise ListFormatError where one record of several lines looks like several rows: between two stray quotes."""
    if sum(_looks_like_row(line, layout) for line in record) > 1:
        raise ListFormatError(
            f"the quote that opens in line {_open_line(record, layout.delimiter, number)} closes in line "
            f"{number + len(record) - 1}, and the lines of this cell look like rows"
        )


def _looks_like_row(line: str, layout: Layout) -> bool:
    cells = line.rstrip("\r\n").split(layout.delimiter)
    if layout.url_column is None:
        return len(cells) == layout.num_columns
    if len(cells) < layout.num_columns:
        return False
    # Other cells may hold delimiters: the column is counted from either end.
    places = (layout.url_column, layout.url_column - layout.num_columns)
    return any(_LIKE_A_URL.search(cells[place]) for place in places)


def _quote_error(lines: Lines, delimiter: str, error: csv.Error) -> ListFormatError:
    record = lines.take_record()
    opened = _open_line(record, delimiter, lines.number - len(record) + 1)
    if "unexpected end" in str(error):
        return ListFormatError(f"the quote that opens in line {opened} is not closed")
    if "field limit" in str(error):
        return ListFormatError(
            f"the cell that begins in line {opened} has over {MAX_CELL_CHARS} characters"
        )
    where = "there" if opened == lines.number else f"in line {lines.number}"
    return ListFormatError(
        f"the quote that opens in line {opened} closes {where} before the cell ends"
    )


def _open_line(record: Sequence[str], delimiter: str, first: int) -> int:
    """Return the line in which the last cell in quotes of a record opens that is unclosed, damaged, or multi-line."""
    text, position, opened = "".join(record), 0, 0
    while position < len(text):
        if text[position] != '"':
            end = text.find(delimiter, position)
            if end < 0:
                break
            position = end + 1
            continue
        closed = _QUOTED.match(text, position)
        if (
            closed is None
            or "\n" in closed[1]
            or "\r" in closed[1]
            or text[closed.end() :][:1] not in (delimiter, "")
        ):
            opened = position
        if closed is None or text[closed.end() : closed.end() + 1] != delimiter:
            break
        position = closed.end() + 1
    return first + len(re.findall(r"\r\n|\r|\n", text[:opened]))


def _without_quotes(cell: str) -> str:
    found = _QUOTED.fullmatch(cell)
    return cell if found is None else found[1].replace('""', '"')


def _collect(
    open_text: Callable[[], TextIO],
    layout: Layout,
    read_rows: Callable[[Lines, Layout], Iterator[Row]],
    wanted: Collection[str],
) -> Table:
    names = list(map(column_name, layout.titles))
    places = [number for number, name in enumerate(names) if name in wanted]
    pick = itemgetter(*places) if len(places) > 1 else lambda cells: (cells[places[0]],)
    schema = pa.schema([(names[place], pa.string()) for place in places])
    url = names[layout.url_column] if layout.url_column is not None else ""

    batches: list[pa.RecordBatch] = []
    with open_text() as file:
        lines = Lines(file)
        for _ in range(layout.header_lines):
            next(lines)
        lines.take_record()
        rows: list[Sequence[str]] = []
        numbers: list[int] = []
        for number, cells in read_rows(lines, layout):
            rows.append(pick(cells))
            numbers.append(number)
            if len(rows) == _BATCH_ROWS:
                batches.append(_batch(rows, numbers, schema, url))
                rows, numbers = [], []
        if rows:
            batches.append(_batch(rows, numbers, schema, url))

    table = pa.Table.from_batches(batches, schema)
    nulls = pa.array(_NULLS, pa.string())
    columns = {
        name: pc.if_else(pc.is_in(table[name], nulls), "", table[name]) for name in schema.names
    }
    return Table(columns, layout.titles)


def _batch(
    rows: Sequence[Sequence[str]], numbers: Sequence[int], schema: pa.Schema, url: str
) -> pa.RecordBatch:
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    if url:
        check_urls(batch.column(url), numbers)
    return batch


def check_urls(urls: pa.Array, numbers: Sequence[int]) -> None:
    """Raise ListFormatError where a cell of URLs holds a line end, or two URLs: a row that lost its line end.

    A URL within a URL, as an archive or a proxy has it, stands after one of `/ = ? : & #`.
    """
    suspects = pc.match_substring_regex(urls, r"(?i)[\r\n]|\S\s*https?://")
    for place in pc.indices_nonzero(suspects).to_pylist():
        text = urls[place].as_py().strip()
        if "\n" in text or "\r" in text:
            raise ListFormatError(f"the URL that begins in line {numbers[place]} holds a line end")
        if _URL_WITHIN.search(text, text.find("://") + 3):
            raise ListFormatError(f"line {numbers[place]} holds two URLs: one to a line")
