"""CSV and TSV, read strictly: every row of a file is returned, or the line that hides one named."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from rdm.sources.lists.list_layout import (
    SINGLE,
    Layout,
    Lines,
    ListFormatError,
    column_name,
    find_layout,
)

MAX_CELL_CHARS = 64_000_000  # a quote that nobody closes does not take the file into memory
_BATCH_ROWS = 20_000
_NULLS = tuple(pyarrow.csv.ConvertOptions().null_values)
_QUOTED = re.compile(r'"((?:[^"]++|"")*+)"')  # possessive: an open quote is found in linear time
_URL_WITHIN = re.compile(r"(?<![/=?:&#])(?<!%[0-9a-f]{2})https?://", re.IGNORECASE)
_SEVERAL_CELLS = re.compile(r"\t|[,;|].*\s")
_LIKE_A_URL = re.compile(r"://|^\W*h?ttps?:|^\W*www\.", re.IGNORECASE)

Row = tuple[int, Sequence[str]]
"""The line where a row begins, and its cells."""


@dataclass(frozen=True)
class Table:
    """The wanted columns of a list by name, as text without nulls; and all of its titles."""

    columns: dict[str, pa.ChunkedArray]
    titles: tuple[str, ...]


def read_delimited(
    open_text: Callable[[], TextIO],
    delimiters: str,
    wanted: Collection[str],
    url: Sequence[str] = (),
) -> Table:
    """Return the wanted columns of a CSV or TSV.

    In a table whose cells are kept apart by tabs a line is a row, as long as each has as many cells
    as the first: many lists of captions use quotes as ordinary characters. Everything else is read
    with quotes.

    Args:
        open_text: opens the file, with its line ends as they are.
        delimiters: what may be between cells, the likeliest first.
        wanted: names of columns, see `column_name`.
        url: names of the column of URLs, the preferred one first. With them, a table may lack a
            header.

    Raises:
        ListFormatError: a row is ragged, or a quote hides rows.
    """
    with open_text() as file:
        layout = find_layout(file, delimiters, wanted, url)
    if not any(column_name(title) in wanted for title in layout.titles):
        return Table({}, layout.titles)

    if layout.delimiter != "\t":
        return _collect(open_text, layout, quoted_rows, wanted)
    # First each line as a row; if that is ragged, with quotes. A failure of both names both.
    try:
        return _collect(open_text, layout, plain_rows, wanted)
    except ListFormatError as plain:
        try:
            return _collect(open_text, layout, quoted_rows, wanted)
        except ListFormatError as quoted:
            reason = "" if str(plain) == str(quoted) else f" (with quotes around cells: {quoted})"
            raise ListFormatError(f"{plain}{reason}") from None


def plain_rows(lines: Lines, layout: Layout) -> Iterator[Row]:
    """Yield each line as a row; only quotes around a whole cell are removed.

    Raises:
        ListFormatError: a row is ragged.
    """
    for line in lines:
        lines.take_record()
        if not line.strip():
            continue

        cells = line.rstrip("\r\n").split(layout.delimiter)
        _check_count(cells, layout, lines.number)

        # Unbalanced quotes would shift the columns: then no URL is where the URLs are.
        url = layout.url_column if '"' in line else None
        if url is not None and not _LIKE_A_URL.search(cells[url]):
            raise ListFormatError(
                f"line {lines.number} has a quote, and no URL in the column of URLs"
            )

        yield lines.number, [_without_quotes(cell) for cell in cells] if '"' in line else cells


def quoted_rows(lines: Lines, layout: Layout) -> Iterator[Row]:
    """Yield the rows of a table in which a cell in quotes may hold delimiters and line ends.

    Raises:
        ListFormatError: a row is ragged, text follows a closing quote, a quote is open at the end
            of the file, or a cell in quotes holds lines that look like rows.
    """
    # The limit is the process's own: it is only ever raised, so that no other reader is in the way.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARS))
    reader = csv.reader(lines, delimiter=layout.delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _quote_error(lines, layout.delimiter, error) from None

        # A quoted cell may span lines, unless they look like rows that a stray quote has swallowed.
        record = lines.take_record()
        number = lines.number - len(record) + 1
        if len(record) > 1:
            _check_swallowed(record, layout, number)
        if not "".join(record).strip():
            continue

        if layout.delimiter == SINGLE and not record[0].startswith('"'):
            _check_single(record[0].strip(), number)
        _check_count(cells, layout, number)
        yield number, cells


def _check_single(cell: str, number: int) -> None:
    """Raise ListFormatError where the only cell of a row looks like several."""
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
    """Raise ListFormatError where a record of several lines looks like rows, by a stray quote."""
    if sum(_looks_like_row(line, layout) for line in record) > 1:
        opened = _open_line(record, layout.delimiter, number)
        raise ListFormatError(
            f"the quote that opens in line {opened} closes in line {number + len(record) - 1}, "
            "and the lines of this cell look like rows"
        )


def _looks_like_row(line: str, layout: Layout) -> bool:
    """Return whether a line could be a row: enough cells, and a URL where the URLs are."""
    cells = line.rstrip("\r\n").split(layout.delimiter)

    if layout.url_column is None:
        return len(cells) == layout.num_columns
    if len(cells) < layout.num_columns:
        return False

    # Other cells may hold delimiters: the column is counted from either end.
    places = (layout.url_column, layout.url_column - layout.num_columns)
    return any(_LIKE_A_URL.search(cells[place]) for place in places)


def _quote_error(lines: Lines, delimiter: str, error: csv.Error) -> ListFormatError:
    """Return csv's error with the line in which the offending quote opens."""
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
    """Return the line in which a record's last unclosed, damaged or multi-line quote opens."""
    text, position, opened = "".join(record), 0, 0
    while position < len(text):
        # A cell without quotes ends at the next delimiter.
        if text[position] != '"':
            end = text.find(delimiter, position)
            if end < 0:
                break
            position = end + 1
            continue

        # A cell in quotes is sound if it closes in its line, right before a delimiter.
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
    """Read all rows into a table of the wanted columns, in batches."""
    names = list(map(column_name, layout.titles))
    places = [number for number, name in enumerate(names) if name in wanted]
    pick = itemgetter(*places) if len(places) > 1 else lambda cells: (cells[places[0]],)
    schema = pa.schema([(names[place], pa.string()) for place in places])
    url = names[layout.url_column] if layout.url_column is not None else ""

    # The header's lines are skipped; batches keep no Python objects of rows that are done.
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

    # Spellings of a missing value become empty texts.
    table = pa.Table.from_batches(batches, schema)
    nulls = pa.array(_NULLS, pa.string())
    columns = {
        name: pc.if_else(pc.is_in(table[name], nulls), "", table[name]) for name in schema.names
    }
    return Table(columns, layout.titles)


def _batch(
    rows: Sequence[Sequence[str]], numbers: Sequence[int], schema: pa.Schema, url: str
) -> pa.RecordBatch:
    """Return rows as columns of text, after a look at their URLs."""
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    if url:
        check_urls(batch.column(url), numbers)
    return batch


def check_urls(urls: pa.Array, numbers: Sequence[int]) -> None:
    """Raise ListFormatError where a URL cell holds a line end or two URLs: a lost line end.

    A URL within a URL, such as an archive's or a proxy's, stands after one of `/ = ? : & #`.
    """
    # One pass in Arrow finds the few suspects; only these are looked at one by one.
    suspects = pc.match_substring_regex(urls, r"(?i)[\r\n]|\S\s*https?://")
    for place in pc.indices_nonzero(suspects).to_pylist():
        text = urls[place].as_py().strip()
        if "\n" in text or "\r" in text:
            raise ListFormatError(f"the URL that begins in line {numbers[place]} holds a line end")
        if _URL_WITHIN.search(text, text.find("://") + 3):
            raise ListFormatError(f"line {numbers[place]} holds two URLs: one to a line")
