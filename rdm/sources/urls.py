"""`urls://LIST`: the photographs that a .txt, .csv or .parquet list names by URL."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from rdm.errors import SourceError
from rdm.sources.fetch import Candidate
from rdm.sources.ledger import Row
from rdm.sources.listing import listing_of
from rdm.sources.local import PATH_HINT, local_path
from rdm.sources.remote import RemoteSource
from rdm.sources.web import public_url

logger = logging.getLogger(__name__)

COLUMNS = {
    "image_id": ("id", "image_id"),
    "location": ("url",),
    "etag": ("etag",),
    "author": ("author",),
    "license": ("license", "licence"),
    "landing_page": ("landing_page",),
}
"""Columns of a listing, and what a list may call them."""


class UrlListSource(RemoteSource):
    """A list of URLs, one photograph each.

    The image id is the list's, or the URL without its secrets. A photograph counts as changed when its `etag` does, or
    without one its URL; a new signature or token in it changes nothing.
    """

    def __init__(self, rest: str) -> None:
        self.path = local_path("urls", rest)
        self.spec = f"urls://{self.path}"
        if not self.path.is_file():
            raise SourceError(
                "the list of URLs does not exist",
                where=self.path,
                fix=f"name a .txt, .csv or .parquet file {PATH_HINT}",
            )

    def listing(self) -> pa.Table:
        """See Source.

        Raises:
            SourceError: the list cannot be read, has no column `url`, or gives two URLs one id.
        """
        found = read_list(self.path, {name for names in COLUMNS.values() for name in names})
        columns = {
            column: found[name].to_pylist() for column, names in COLUMNS.items() for name in names if name in found
        }
        if "location" not in columns:
            raise SourceError(
                "the list has no column url",
                where=self.path,
                fix="name the column of URLs url; further ones may be id, author, license, landing_page, etag",
            )
        urls = [public_url(url) for url in columns["location"]]
        digests = [hashlib.sha256(url.encode()).hexdigest()[:16] for url in urls]
        for name, defaults in (("image_id", urls), ("etag", digests)):
            own = columns.get(name, defaults)
            columns[name] = [value or default for value, default in zip(own, defaults, strict=True)]
        lines = self._without_repeats(columns["image_id"], urls)
        return listing_of({name: pa.array(values, pa.string()).take(lines) for name, values in columns.items()})

    def _without_repeats(self, ids: Sequence[str], urls: Sequence[str]) -> pa.Array:
        """Return the numbers of the lines that are the first to name their photograph."""
        first: dict[tuple[str, str], int] = {}
        for number, pair in enumerate(zip(ids, urls, strict=True)):
            first.setdefault(pair, number)
        if len(first) < len(urls):
            logger.warning("%s: lines that name a photograph again, left out: %d", self.path, len(urls) - len(first))
        return pa.array(list(first.values()), pa.int64())

    def candidates(self, entry: Row) -> Sequence[Candidate]:
        """See RemoteSource."""
        return (Candidate(entry["location"]),)


def read_list(path: Path, wanted: Collection[str]) -> dict[str, pa.ChunkedArray]:
    """Return the wanted columns that a .txt, .csv or .parquet file has, as text without nulls.

    A .txt has one URL per line; `#` begins a comment. Column names are compared in lower case, `-` and space as `_`.

    Raises:
        SourceError: the file is none of these, or is damaged.
    """

    def keep(title: str) -> bool:
        return _column_name(title) in wanted

    readers = {
        ".txt": _read_lines,
        ".csv": lambda path: read_csv(path, keep),
        ".parquet": lambda path: _read_parquet(path, keep),
    }
    if path.suffix.lower() not in readers:
        raise SourceError("a list ends with .txt, .csv or .parquet", where=path, fix="rename or convert it")
    try:
        table = readers[path.suffix.lower()](path)
        found: dict[str, pa.ChunkedArray] = {}
        for title, column in zip(table.column_names, table.columns, strict=True):
            name = _column_name(title)
            if name in found:
                raise pa.ArrowInvalid(f"two columns are called {name}")
            found[name] = column.cast(pa.string()).fill_null("")
            found[name].validate(full=True)  # Parquet does not look whether texts are UTF-8
        return found
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        # Arrow's message may quote a line of the list, and with it a URL.
        reason = str(error).partition(": ")[0] if isinstance(error, pa.ArrowException) else type(error).__name__
        raise SourceError(f"the list cannot be read: {reason}", where=path, fix="mend the file") from None


def _read_lines(path: Path) -> pa.Table:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return pa.table({"url": pa.array([line for line in lines if line and not line.startswith("#")], pa.string())})


def _read_parquet(path: Path, keep: Callable[[str], bool]) -> pa.Table:
    return pq.read_table(path, columns=[name for name in pq.read_schema(path).names if keep(name)])


def _column_name(title: str) -> str:
    return title.strip().lower().replace("-", "_").replace(" ", "_")


def read_csv(path: Path, keep: Callable[[str], bool]) -> pa.Table:
    """Return the columns of a CSV file whose titles are to be kept, as text.

    Raises:
        OSError: the file cannot be opened.
        pyarrow.ArrowException: it is damaged.
    """
    with pyarrow.csv.open_csv(path) as reader:
        try:
            names = [name for name in reader.schema.names if keep(name)]
        except UnicodeDecodeError as error:
            raise pa.ArrowInvalid("a column's name is not UTF-8") from error
    if len(set(names)) < len(names):
        raise pa.ArrowInvalid("two columns have one name")
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
        ),
    )
