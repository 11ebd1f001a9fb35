"""Sources: a specification such as `folder:///photos` becomes a sorted table of photographs that can be read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from rdm.errors import SourceError, UsageError
from rdm.sources.decode import IMAGE_SUFFIXES

LISTING_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # unique and stable within the source
        ("location", pa.string()),  # what `read` needs to find the bytes
        ("etag", pa.string()),  # changes when the bytes do: size and time, or a digest
        ("author", pa.string()),  # empty where the source does not say
        ("license", pa.string()),  # a URL
        ("landing_page", pa.string()),
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

    def read(self, location: str) -> bytes:
        """Return one photograph's encoded bytes; raises OSError where they cannot be had."""
        ...

    def credits(self) -> tuple[Author, ...]:
        """Return the authors whom the source names as a list, not photograph by photograph."""
        ...


def make_listing(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as a listing: sorted, missing columns empty.

    Raises:
        SourceError: an image id occurs twice.
    """
    complete = [{"etag": "", "author": "", "license": "", "landing_page": "", **row} for row in rows]
    complete.sort(key=lambda row: row["image_id"])
    for first, second in zip(complete, complete[1:], strict=False):
        if first["image_id"] == second["image_id"]:
            raise SourceError(
                f"the image id {first['image_id']!r} occurs twice",
                where=second["location"],
                fix="give each photograph its own name",
            )
    return pa.Table.from_pylist(complete, schema=LISTING_SCHEMA)


def names_picture(location: str) -> bool:
    """Return whether a location looks like a picture: by its ending, or as the member of a tar (`TAR:OFFSET:SIZE`)."""
    return location.lower().endswith(tuple(IMAGE_SUFFIXES)) or re.search(r":\d+:\d+$", location) is not None


def fingerprint(listing: pa.Table) -> str:
    """Return 16 hexadecimal digits that change whenever a photograph is added, removed or replaced."""
    digest = hashlib.sha256()
    for column in ("image_id", "etag"):
        for value in listing.column(column).to_pylist():
            digest.update(value.encode() + b"\0")
    return digest.hexdigest()[:16]


def open_source(spec: str) -> Source:
    """Open the source that a specification names.

    Known forms: `samples://openimages-birds[/database|/queries]`, `folder:///DIR`,
    `webdataset:///DIR_OR_TAR`.

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


def _samples(rest: str) -> Source:
    from rdm.sources.samples import SampleSource

    return SampleSource(rest)


def _folder(rest: str) -> Source:
    from rdm.sources.folder import FolderSource

    return FolderSource(rest)


def _webdataset(rest: str) -> Source:
    from rdm.sources.tars import WebDatasetSource

    return WebDatasetSource(rest)


_SCHEMES: dict[str, Callable[[str], Source]] = {"samples": _samples, "folder": _folder, "webdataset": _webdataset}
