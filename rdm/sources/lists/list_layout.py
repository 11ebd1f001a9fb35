"""How a CSV or TSV is written, by its first line: delimiter, columns, with a header or without."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

SINGLE = "\x1f"  # delimiter of a table of one column: commas are part of its cells
_CLEAN_URL = re.compile(r"https?://\S+", re.IGNORECASE)


class ListFormatError(ValueError):
    """A list in which rows may hide; the message names the line and quotes none of it."""


@dataclass(frozen=True)
class Layout:
    """How a table is written: its delimiter, its columns, and where its rows begin.

    Args:
        delimiter: between the cells of a row.
        titles: the header's names of the columns; without a header, `url` and empty names.
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


def column_name(title: str) -> str:
    """Return a column's title in lower case, with `_` for `-` and space."""
    return title.strip().lower().replace("-", "_").replace(" ", "_")


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
                f"line {self.number} holds a NUL byte: the file is damaged, or UTF-16 "
                "without a mark"
            )
        self._record.append(line)
        return line

    def take_record(self) -> list[str]:
        """Return the lines that were read since the last call."""
        record, self._record = self._record, []
        return record


def find_layout(
    file: TextIO, delimiters: str, wanted: Collection[str], url: Sequence[str]
) -> Layout:
    """Return the layout that the first line shows.

    Raises:
        ListFormatError: the header runs over several lines, or the file is empty, or has no header
            and might have any number of columns.
    """
    lines = Lines(file)
    first = next(filter(str.strip, lines), None)
    if first is None:
        raise ListFormatError("it is empty")

    # Excel's way to name the delimiter.
    if (sep := re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE)) is not None:
        delimiters = sep[1]
        first = next(filter(str.strip, lines), "")

    # The header is the line with wanted columns; the delimiter that separates most of them counts.
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

    # Without a header the first line is a row already: the URL in it tells the column.
    if known[delimiter] == 0 and url and _CLEAN_URL.search(first):
        return _headerless(options, first, url[0], lines.number)

    titles = tuple(options[delimiter])
    check_unique([name for name in names[delimiter] if name in wanted])
    column = next((names[delimiter].index(name) for name in url if name in names[delimiter]), None)
    return Layout(delimiter if len(titles) > 1 else SINGLE, titles, lines.number, column)


def _headerless(options: dict[str, list[str]], first: str, name: str, line: int) -> Layout:
    """Return the layout of a table that begins with a row; its URL tells the column."""
    # A line of one URL: commas are part of it, unless a delimiter makes several cells.
    if _CLEAN_URL.fullmatch(first.strip().strip('"')):
        if next(iter(options)) != "\t" and any(len(cells) > 1 for cells in options.values()):
            raise ListFormatError(
                f"without a header, line {line} may be a URL or several cells: add a first "
                "line such as url,caption"
            )

        return Layout(SINGLE, (name,), line - 1, 0)

    # Several cells, of which exactly one is a URL.
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
        f"line {line} is no header, and none of its cells is a URL: add a header such as "
        "url,caption"
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
