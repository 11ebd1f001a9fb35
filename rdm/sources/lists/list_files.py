"""Lists as people have them: text, CSV, TSV and Parquet, one file or many; no row is lost."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence, Set
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rdm.errors import SourceError
from rdm.sources.lists.delimited import Table, check_urls, read_delimited
from rdm.sources.lists.list_layout import Lines, ListFormatError, check_unique, column_name
from rdm.sources.patterns import check_finished, count_suffixes, expand_pattern, files_below

ResultT = TypeVar("ResultT")
SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")
TAKEN = ".txt, .csv, .tsv (or these as .gz) and .parquet, or a folder of them"
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}
_MARKS = {  # UTF-32 before UTF-16, whose mark begins like its own
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_list(path: Path, wanted: Collection[str], *, url: Sequence[str] = ()) -> Table:
    """Return the wanted columns that a list has, as text without nulls, of all its parts in order.

    Column names are compared in lower case, `-` and space as `_`.

    Args:
        path: a file, a folder of parts, or a pattern with `{000..003}` or `*`.
        wanted: names of columns.
        url: names for the column of URLs, the preferred one first; each part must then have it.

    Raises:
        SourceError: there is no such list, it is damaged, or a line of it hides rows.
    """
    parts = list_parts(path)
    tables = [_read_part(part, wanted, url) for part in parts]

    # Parts of one list have the same columns; anything else is another list.
    for part, table in zip(parts, tables, strict=True):
        if table.columns.keys() != tables[0].columns.keys():
            raise SourceError(
                f"a part of the list has other columns than {parts[0].name}: "
                f"{_listed(table.titles)}",
                where=part,
                fix="name a folder whose parts belong to one list",
            )

    columns = {
        name: pa.chunked_array(
            [chunk for table in tables for chunk in table.columns[name].chunks], pa.string()
        )
        for name in tables[0].columns
    }
    return Table(columns, tables[0].titles)


def list_parts(path: Path) -> list[Path]:
    """Return the files of a list, sorted: itself, a folder's parts, or those of a pattern.

    Raises:
        SourceError: there is none, or a part is not whole yet.
    """
    if not path.exists():
        return _pattern_parts(path)
    if not path.is_dir():
        return [path]

    # Names with `_` are notes of Spark and others beside their parts: _SUCCESS, _temporary.
    visible = files_below(path)
    files = [file for file in visible if "/_" not in f"/{file.relative_to(path).as_posix()}"]
    check_finished(files)

    parts = [file for file in files if _kind(file)]
    kinds = Counter(_kind(part) for part in parts)

    if len(kinds) != 1:
        what = "the folder holds lists of several kinds" if kinds else "the folder holds no list"
        raise SourceError(
            f"{what}: {count_suffixes(files)}", where=path, fix=f"name one of {TAKEN}"
        )
    return parts


def _pattern_parts(path: Path) -> list[Path]:
    found = expand_pattern(str(path))
    if not found.paths:
        raise SourceError("the list does not exist", where=path, fix=f"name {TAKEN}")
    if found.missing:
        raise SourceError(
            f"{len(found.missing)} of the files of the pattern do not exist",
            where=found.missing[0],
            fix="check the pattern, or fetch them",
        )
    return found.paths


def _kind(path: Path) -> str:
    """Return the ending that says how a file is read; "" if it is not a list."""
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    is_zipped_parquet = suffix == ".parquet" and path.name.lower().endswith(".gz")
    return suffix if suffix in SUFFIXES and not is_zipped_parquet else ""


def _read_part(path: Path, wanted: Collection[str], url: Sequence[str]) -> Table:
    """Read one file of a list by its ending."""
    kind = _kind(path)
    if not kind:
        raise SourceError(
            f"a list ends with one of {', '.join(SUFFIXES)}", where=path, fix="rename or convert it"
        )

    opened = partial(open_text, path)
    readers: dict[str, Callable[[], Table]] = {
        ".txt": lambda: _read_urls(opened, frozenset(wanted)),
        ".csv": lambda: read_delimited(opened, _DELIMITERS[kind], wanted, url),
        ".tsv": lambda: read_delimited(opened, _DELIMITERS[kind], wanted, url),
        ".parquet": lambda: _read_parquet(path, wanted),
    }

    table = _reading(path, readers[kind])
    if url and not any(name in table.columns for name in url):
        raise SourceError(
            f"the list has no column {url[0]}: it has {_listed(table.titles)}",
            where=path,
            fix=f"name the column of URLs {url[0]}; further ones may be id, author, title, "
            "license, landing_page, etag",
        )
    return table


def _reading(path: Path, read: Callable[[], ResultT]) -> ResultT:
    """Return a reader's result, or raise SourceError in words that quote nothing of the file.

    The file may hold secrets.
    """
    fix = "mend the file"

    try:
        return read()

    except ListFormatError as error:
        reason = str(error)
        fix = "mend that line: a cell in quotes ends with one, and doubles those inside it"
    except UnicodeDecodeError as error:
        reason, fix = f"{_undecodable(path)} is not {error.encoding.upper()}", "save it as UTF-8"
    except (EOFError, zlib.error, gzip.BadGzipFile):
        reason, fix = "the gzip file is damaged or cut short", "fetch it again"
    except pa.ArrowException as error:
        kind = type(error).__name__
        reason = f"the Parquet file is damaged or of a kind that is not read ({kind})"
    except OSError as error:
        reason, fix = error.strerror or type(error).__name__, "check the file"
    raise SourceError(f"the list cannot be read: {reason}", where=path, fix=fix) from None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text that are not blank, stripped.

    Raises:
        SourceError: the text is damaged, not UTF-8, or UTF-16 without a mark.
    """

    def read() -> list[str]:
        with open_text(path) as file:
            return [line.strip() for line in Lines(file) if line.strip()]

    return _reading(path, read)


def open_text(path: Path) -> TextIO:
    """Open a text, gzipped or not, with its own line ends: UTF-8, or as its mark says.

    Raises:
        OSError: it cannot be opened.
    """
    binary = open_binary(path)
    head = cast(io.BufferedReader, binary).peek(4)[:4]
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    return io.TextIOWrapper(binary, encoding=encoding, newline="")


def open_binary(path: Path) -> BinaryIO:
    """Open a file; a gzipped one gives its contents, whatever its name."""
    file = open(path, "rb")  # noqa: SIM115
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    file.close()
    return cast(BinaryIO, gzip.open(path, "rb"))


def _undecodable(path: Path) -> str:
    """Return the first line whose bytes are no UTF-8, in words."""
    # Lines are counted as the reader counts them: by any of the three line ends.
    number, line_end = 1, re.compile(rb"\r\n|\r|\n")
    with open_binary(path) as file:
        for chunk in file:
            try:
                chunk.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number + len(line_end.findall(chunk[: error.start]))}"
            number += len(line_end.findall(chunk))
    return "the file"


def _read_urls(opened: Callable[[], TextIO], wanted: Set[str]) -> Table:
    """Return the URLs of a text list: one a line, `#` for comments, quotes around it removed."""
    urls: list[str] = []
    numbers: list[int] = []
    with opened() as file:
        lines = Lines(file)
        for line in lines:
            lines.take_record()
            text = line.strip()
            if not text or text.startswith("#") or (not urls and column_name(text) in wanted):
                continue  # blank, a comment, or a header

            # A table would give URLs with captions in them.
            if "\t" in text or (not urls and _is_header(text, wanted)):
                raise ListFormatError(
                    f"line {lines.number} is one of a table: call the file .tsv or .csv"
                )

            if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
                text = text[1:-1].strip()
            urls.append(text)
            numbers.append(lines.number)

    column = pa.array(urls, pa.string())
    check_urls(column, numbers)
    return Table({"url": pa.chunked_array([column])}, ("url",))


def _is_header(text: str, wanted: Set[str]) -> bool:
    """Return whether a line names a wanted column among several cells."""
    return any(
        wanted & {column_name(cell) for cell in text.split(delimiter)} for delimiter in ",;|"
    )


def _read_parquet(path: Path, wanted: Collection[str]) -> Table:
    with pq.ParquetFile(path) as file:
        titles = file.schema_arrow.names
        kept = [title for title in titles if column_name(title) in wanted]
        names = list(map(column_name, kept))
        check_unique(names)
        table = file.read(columns=kept)

    columns: dict[str, pa.ChunkedArray] = {}
    for name, title in zip(names, kept, strict=True):
        column = table[title]
        try:
            columns[name] = column.cast(pa.string()).fill_null("")
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            raise ListFormatError(
                f"the column {name} holds {column.type}, which is no text"
            ) from None
        columns[name].validate(full=True)  # Parquet does not check that texts are UTF-8
    return Table(columns, tuple(titles))


def _listed(titles: Sequence[str]) -> str:
    """Return those titles that look like titles: any other may be a row, and hold a secret."""
    names = [title.strip() for title in titles if re.fullmatch(r"[\w .-]{1,40}", title.strip())]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no titles"
