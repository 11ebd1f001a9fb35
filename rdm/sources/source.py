"""Sources: a specification such as `folder:///photos` becomes a sorted table of photographs."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from rdm.errors import SourceError
from rdm.sources.http.client import FetchConfig
from rdm.sources.http.urls import public_url
from rdm.sources.ledger import Row
from rdm.sources.photographs.decode import IMAGE_SUFFIXES

LISTING_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # unique and stable within the source
        ("location", pa.string()),  # what `read` needs to find the bytes
        ("etag", pa.string()),  # changes when the bytes do: size and time, or a digest
        ("author", pa.string()),  # empty where the source does not say
        ("title", pa.string()),
        ("license", pa.string()),  # a URL, or a name such as CC BY 2.0
        ("landing_page", pa.string()),
        # counter-clockwise degrees that make the pixels upright, where the source knows
        ("rotation", pa.int16()),
        # of the bytes at the location, where the source knows: base64 of their MD5
        ("checksum", pa.string()),
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
        """Return one photograph's encoded bytes, or the first `limit` of them.

        Raises:
            OSError: the bytes cannot be read.
            SourceError: this kind of source gives photographs to a database only, by shards.
        """
        ...

    def take(
        self, entries: Sequence[Row], scratch: Path, fetch: FetchConfig
    ) -> Iterator[tuple[Row, bytes]]:
        """Yield the ledger row of every listed photograph, in order, and its bytes (b"" if none).

        Args:
            entries: rows of the listing, those of one shard.
            scratch: a folder for unfinished work, which a later run goes on from.
            fetch: how URLs are fetched, where the source has any.
        """
        ...

    def credits(self) -> tuple[Author, ...]:
        """Return the authors whom the source names as a list, not photograph by photograph."""
        ...


_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("etag", "author", "title", "license", "landing_page", "checksum"), ""),
    "rotation": 0,
}


def make_listing(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as a listing: sorted, with empty columns where the rows have none.

    Raises:
        SourceError: an image id occurs twice.
    """
    given = (name for name in _DEFAULTS if any(name in row for row in rows))
    names = ("image_id", "location", *given)
    return listing_of(
        {name: pa.array([row.get(name, _DEFAULTS.get(name)) for row in rows]) for name in names}
    )


def listing_of(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    """Return columns as a listing: sorted, missing ones empty; id and location are required.

    Raises:
        SourceError: an image id occurs twice.
    """
    count = len(columns["image_id"])
    complete = []
    for field in LISTING_SCHEMA:
        values = columns.get(field.name, pa.repeat(_DEFAULTS.get(field.name), count))
        complete.append(values.cast(field.type))  # type: ignore[union-attr]

    # The order of a database must not depend on the order of a folder's entries.
    table = pa.Table.from_arrays(complete, schema=LISTING_SCHEMA).sort_by("image_id")

    # Sorted, so that equal ids are neighbors.
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
    """Return whether a location looks like a picture: by its ending, or as a member of a tar."""
    if location.lower().endswith(tuple(IMAGE_SUFFIXES)):
        return True
    return re.search(r":\d+:\d+(:sparse)?$", location) is not None


def fingerprint(listing: pa.Table) -> str:
    """Return 16 hexadecimal digits that change with every added, removed or replaced photograph."""
    digest = hashlib.sha256()
    for column in ("image_id", "etag"):
        for value in listing.column(column).to_pylist():
            digest.update(value.encode() + b"\0")
    return digest.hexdigest()[:16]
