"""Sources: a specification such as `folder:///photos` becomes a sorted table of photographs that can be taken in."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote_plus

import pyarrow as pa
import pyarrow.compute as pc

from rdm.errors import SourceError, UsageError
from rdm.sources.file_names import text_of_path
from rdm.sources.http.client import FetchConfig
from rdm.sources.http.urls import public_url
from rdm.sources.ledger import Row
from rdm.sources.photographs.decode import IMAGE_SUFFIXES
from rdm.storage.files import absolute_path

LISTING_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # unique and stable within the source
        ("location", pa.string()),  # what `read` needs to find the bytes
        ("etag", pa.string()),  # changes when the bytes do: size and time, or a digest
        ("author", pa.string()),  # empty where the source does not say
        ("license", pa.string()),  # a URL
        ("landing_page", pa.string()),
        ("rotation", pa.int16()),  # counter-clockwise degrees that make the pixels upright, where the source knows
        ("checksum", pa.string()),  # of the bytes at the location, where the source knows: base64 of their MD5
    ]
)
"""Columns of a listing, one row per photograph, sorted by image_id."""


@dataclass(frozen=True)
class Author:
    """Somebody to credit, with their page where the source names it."""

    name: str
    url: str = ""


class Source(Protocol):
    """A place that photographs come from."""

    @property
    def spec(self) -> str:
        """The specification that opens this source again."""
        ...

    def listing(self) -> pa.Table:
        """Return every photograph as a table of LISTING_SCHEMA, sorted by image_id."""
        ...

    def read(self, location: str, limit: int | None = None) -> bytes:
        """Return one photograph's encoded bytes, or the first `limit` of them; raises OSError where none can be had.

        Raises:
            SourceError: this kind of source gives its photographs to a database only, shard by shard.
        """
        ...

    def take(self, entries: Sequence[Row], scratch: Path, fetch: FetchConfig) -> Iterator[tuple[Row, bytes]]:
        """Yield the ledger row of every listed photograph, in order, and its bytes (none where it cannot be used).

        Args:
            entries: rows of the listing, those of one shard.
            scratch: a folder for unfinished work. What a killed run left there is used by the next.
            fetch: how URLs are fetched, where the source has any.
        """
        ...

    def credits(self) -> tuple[Author, ...]:
        """Return the authors whom the source names as a list, not photograph by photograph."""
        ...


_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("etag", "author", "license", "landing_page", "checksum"), ""),
    "rotation": 0,
}


def make_listing(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as a listing: sorted, missing columns empty.

    Raises:
        SourceError: an image id occurs twice.
    """
    names = ("image_id", "location", *(name for name in _DEFAULTS if any(name in row for row in rows)))
    return listing_of({name: pa.array([row.get(name, _DEFAULTS.get(name)) for row in rows]) for name in names})


def listing_of(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    """Return columns as a listing: sorted, missing ones empty; `image_id` and `location` must be there.

    Raises:
        SourceError: an image id occurs twice.
    """
    count = len(columns["image_id"])
    complete = [
        columns.get(field.name, pa.repeat(_DEFAULTS.get(field.name), count)).cast(field.type)  # type: ignore[union-attr]
        for field in LISTING_SCHEMA
    ]
    table = pa.Table.from_arrays(complete, schema=LISTING_SCHEMA).sort_by("image_id")
    ids = table["image_id"]
    if (repeats := pc.sum(pc.equal(ids[1:], ids[:-1])).as_py() or 0) > 0:
        row = pc.index(pc.equal(ids[1:], ids[:-1]), True).as_py() + 1
        others = f", and {repeats - 1} more ids do" if repeats > 1 else ""
        raise SourceError(
            f"the image id {ids[row].as_py()!r} occurs twice{others}",
            where=public_url(table["location"][row].as_py()),
            fix="give each photograph its own name",
        )
    return table


def names_picture(location: str) -> bool:
    """Return whether a location looks like a picture: by its ending, or as the member of a tar (`TAR:OFFSET:SIZE`)."""
    return location.lower().endswith(tuple(IMAGE_SUFFIXES)) or re.search(r":\d+:\d+(:sparse)?$", location) is not None


def fingerprint(listing: pa.Table) -> str:
    """Return 16 hexadecimal digits that change whenever a photograph is added, removed or replaced."""
    digest = hashlib.sha256()
    for column in ("image_id", "etag"):
        for value in listing.column(column).to_pylist():
            digest.update(value.encode() + b"\0")
    return digest.hexdigest()[:16]


def open_source(spec: str) -> Source:
    """Open the source that a specification names.

    Known forms: `samples://openimages-birds[/database|/queries]`, `folder:///DIR`, `webdataset:///DIR_OR_TAR`,
    `database:///DB`, `urls:///LIST`, `openimages://SPLIT[?limit=N&ids=FILE&mirror=URL&metadata=URL]`.

    Raises:
        UsageError: the specification has no known scheme.
        SourceError: what it names does not exist.
    """
    scheme, separator, rest = spec.partition("://")
    if not separator or scheme not in _SCHEMES:
        hint = f"folder://{spec}" if "://" not in spec else ""
        raise UsageError(
            f"{spec!r} is not a source" + (f" (did you mean {hint}?)" if hint else ""),
            fix=f"sources: {', '.join(f'{name}://' for name in _SCHEMES)}",
        )
    return _SCHEMES[scheme](rest)


def absolute_spec(spec: str) -> str:
    """Return a specification that names the same files in every working directory."""
    scheme, separator, rest = spec.strip().partition("://")
    if scheme == "openimages":
        split, mark, query = rest.partition("?")
        return f"{scheme}://{split}{mark}{'&'.join(map(_absolute_option, query.split('&')))}"
    if scheme not in _LOCAL or not separator or not rest:
        return spec
    return f"{scheme}://{text_of_path(absolute_path(rest))}"


def local_part(spec: str) -> str | None:
    """Return the absolute path of the file or folder that a specification names; None where it names none."""
    scheme, _, rest = spec.strip().partition("://")
    return absolute_path(rest) if scheme in _LOCAL and rest else None


def _absolute_option(option: str) -> str:
    name, _, value = option.partition("=")
    path = unquote_plus(value)
    if name not in ("ids", "metadata", "boxes") or not path or "://" in path or os.path.isabs(path):
        return option
    return f"{name}={quote(absolute_path(path))}"


def same_source(one: str, other: str) -> bool:
    """Return whether two specifications name the same photographs, wherever their bytes come from.

    A mirror of Open Images holds copies of what the metadata lists, and can be changed.
    """
    return _without_mirror(one) == _without_mirror(other)


def _without_mirror(spec: str) -> tuple[str, tuple[str, ...]]:
    base, _, query = spec.partition("?")
    if not base.startswith("openimages://"):
        return spec, ()
    return base, tuple(sorted(option for option in query.split("&") if option and not option.startswith("mirror=")))


def _samples(rest: str) -> Source:
    from rdm.sources.kinds.samples import SampleSource

    return SampleSource(rest)


def _folder(rest: str) -> Source:
    from rdm.sources.kinds.folder import FolderSource

    return FolderSource(rest)


def _webdataset(rest: str) -> Source:
    from rdm.sources.kinds.webdataset import WebDatasetSource

    return WebDatasetSource(rest)


def _database(rest: str) -> Source:
    from rdm.sources.kinds.database import DatabaseSource

    return DatabaseSource(rest)


def _urls(rest: str) -> Source:
    from rdm.sources.kinds.url_list import UrlListSource

    return UrlListSource(rest)


def _openimages(rest: str) -> Source:
    from rdm.sources.kinds.open_images import OpenImagesSource

    return OpenImagesSource(rest)


_LOCAL = frozenset({"folder", "webdataset", "database", "urls"})
_SCHEMES: dict[str, Callable[[str], Source]] = {
    "samples": _samples,
    "folder": _folder,
    "webdataset": _webdataset,
    "database": _database,
    "urls": _urls,
    "openimages": _openimages,
}
