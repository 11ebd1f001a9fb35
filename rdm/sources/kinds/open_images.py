"""`openimages://SPLIT`: photographs of Open Images, first from a mirror, then from their origin."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from rdm.config import Config
from rdm.errors import SourceError, UsageError
from rdm.sources.fetching.rounds import Candidate
from rdm.sources.http.metadata_files import download
from rdm.sources.http.urls import fetchable_url
from rdm.sources.kinds.remote import RemoteSource
from rdm.sources.ledger import Row
from rdm.sources.lists.list_files import read_lines, read_list
from rdm.sources.source import listing_of

METADATA = {
    "train": "v6/oidv6-train-images-with-labels-with-rotation.csv",
    "validation": "2018_04/validation/validation-images-with-rotation.csv",
    "test": "2018_04/test/test-images-with-rotation.csv",
}
"""The published CSV of each split, below the base URL of the metadata."""

BOXES = {
    "train": "v6/oidv6-train-annotations-bbox.csv",
    "validation": "v5/validation-annotations-bbox.csv",
    "test": "v5/test-annotations-bbox.csv",
}
"""The published CSV of each split's boxes, below the base URL of the metadata."""

_COLUMNS = {
    "image_id": "ImageID",
    "location": "OriginalURL",
    "author": "Author",
    "license": "License",
    "landing_page": "OriginalLandingURL",
    "checksum": "OriginalMD5",
}


# Not in every release: the split, and what may be said of a photograph beyond its author.
_OPTIONAL = ("subset", "title", "rotation")
_METADATA_NAMES = frozenset({*(name.lower() for name in _COLUMNS.values()), *_OPTIONAL})


class OpenImagesOptions(Config):
    """Options that may follow the split in a specification, as `?name=value&name=value`."""

    metadata: str = Field(
        default="https://storage.googleapis.com/openimages",
        description="base URL or folder of the CSVs, or one CSV",
    )
    mirror: str = Field(
        default="https://open-images-dataset.s3.amazonaws.com",
        description="base URL of a bucket with SPLIT/ID.jpg; empty: originals only",
    )
    limit: int = Field(
        default=0, ge=0, description="only so many photographs, the first by id; 0: all"
    )
    boxes: str = Field(
        default="", description="URL or path of the CSV of boxes; empty: the published one"
    )
    ids: str = Field(
        default="", description="a file with one image id per line (or SPLIT/ID): only these"
    )


class OpenImagesSource(RemoteSource):
    """One split of Open Images; the image id is the data set's.

    A photograph counts as changed when its original's URL or MD5, or its rotation, does.
    """

    def __init__(self, rest: str) -> None:
        self.split, _, query = rest.partition("?")
        self.spec = f"openimages://{rest}"
        if self.split not in METADATA:
            raise UsageError(
                f"Open Images has no split {self.split!r}",
                fix=f"openimages:// with one of {', '.join(METADATA)}",
            )
        self.options = _options(query)

    def listing(self) -> pa.Table:
        """See Source. The location of a requested id that the metadata lack is empty.

        Raises:
            SourceError: the metadata or the list of ids cannot be read.
        """
        table = self._metadata()

        # Requested ids stay rows, known or not, so that the ledger can say which are unknown.
        if self.options.ids:
            wanted = pa.table({"image_id": pa.array(sorted(self._ids()), pa.string())})
            table = wanted.join(table, "image_id").sort_by("image_id")

        if self.options.limit:
            table = table.sort_by("image_id").slice(0, self.options.limit)

        columns: dict[str, Any] = {
            name: pc.fill_null(table[name].combine_chunks(), "")
            for name in (*_COLUMNS, "title", "rotation")
        }

        # A new rotation makes other pixels of the same file, so it is part of the etag.
        parts = [columns[name] for name in ("location", "checksum", "rotation")]
        columns["etag"] = pc.binary_join_element_wise(*parts, " ")
        columns["rotation"] = _quarter_turns(columns["rotation"])

        return listing_of(columns)

    def candidates(self, entry: Row) -> Sequence[Candidate]:
        """See RemoteSource. Without metadata there is no license, and so no candidate."""
        if not entry["location"]:
            return ()
        original = Candidate(entry["location"], entry["checksum"])
        if not self.options.mirror:
            return (original,)
        name = quote(entry["image_id"], safe="")
        return Candidate(f"{self.options.mirror.rstrip('/')}/{self.split}/{name}.jpg"), original

    def boxes_path(self) -> Path:
        """Return the CSV of the boxes that people drew, downloaded if it is not at hand.

        Raises:
            SourceError: it cannot be fetched.
        """
        base = self.options.metadata
        if not self.options.boxes and base.endswith(".csv"):
            raise SourceError(
                "where the boxes lie cannot be told from a metadata CSV",
                where=base,
                fix="add boxes=URL_OR_FILE",
            )
        place = self.options.boxes or f"{base.rstrip('/')}/{BOXES[self.split]}"
        return download(place) if "://" in place else Path(os.path.expanduser(place))

    def _metadata(self) -> pa.Table:
        """Return the rows of this split with the columns that a listing needs."""
        path = self._metadata_path()
        found = read_list(path, _METADATA_NAMES).columns
        missing = [title for title in _COLUMNS.values() if title.lower() not in found]
        if missing:
            raise SourceError(
                f"the metadata has no column {', '.join(missing)}",
                where=path,
                fix="metadata= must lead to an image CSV of Open Images, such as "
                "validation-images-with-rotation.csv",
            )

        # Title, rotation, and a column that tells the split, are not in every release.
        nothing = pa.chunked_array([pa.repeat("", len(found["imageid"]))])
        columns = {name: found[title.lower()] for name, title in _COLUMNS.items()}
        optional = {name: found.get(name, nothing) for name in ("title", "rotation")}
        table = pa.table({**columns, **optional})
        if "subset" not in found:
            return table
        self._check_subsets(found["subset"], path)
        # The CSV of all images has every split.
        return table.filter(pc.equal(found["subset"], self.split))

    def _check_subsets(self, subsets: pa.ChunkedArray, path: Path) -> None:
        """Raise SourceError for rows of no known split: the file is cut short or damaged."""
        unknown = set(subsets.unique().to_pylist()) - METADATA.keys()
        if unknown:
            count = pc.sum(pc.is_in(subsets, pa.array(sorted(unknown), pa.string()))).as_py()
            raise SourceError(
                f"the metadata has {count} rows of no split: their Subset is none of "
                f"{', '.join(METADATA)}",
                where=path,
                fix="fetch the file again",
            )

    def _metadata_path(self) -> Path:
        base = self.options.metadata
        place = base if base.endswith(".csv") else f"{base.rstrip('/')}/{METADATA[self.split]}"
        return download(place) if "://" in base else Path(os.path.expanduser(place))

    def _ids(self) -> set[str]:
        path = Path(os.path.expanduser(self.options.ids))
        lines = read_lines(path)
        return {line.removeprefix(f"{self.split}/") for line in lines}


def _options(query: str) -> OpenImagesOptions:
    """Parse and check the options of a specification."""
    if query == "":
        return OpenImagesOptions()

    try:
        pairs = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
        options = OpenImagesOptions.model_validate(pairs)
    except ValidationError as error:
        first = error.errors()[0]
        raise _not_understood(first["loc"][0], first["msg"]) from None
    except ValueError:
        raise _not_understood("?", "write name=value") from None

    # A URL that nothing would fetch is an error now, not in every row of the ledger.
    for name in ("metadata", "mirror", "boxes"):
        value = getattr(options, name)
        if "://" in value and fetchable_url(value) is None:
            raise UsageError(
                f"{name} is not a URL that can be fetched",
                fix="http:// or https://, without a password",
            )
    return options


def _not_understood(name: object, message: str) -> UsageError:
    return UsageError(
        f"openimages:// does not understand {name}: {message}",
        fix=f"options: {', '.join(OpenImagesOptions.model_fields)}, as ?limit=500&ids=FILE",
    )


def _quarter_turns(rotation: pa.Array) -> pa.Array:
    """Return rotations as degrees; "0.0", "90.0", ..., or nothing where nobody knows."""
    turns = {"90": 90, "180": 180, "270": 270}
    return pa.array(
        [turns.get(text.removesuffix(".0"), 0) for text in rotation.to_pylist()], pa.int16()
    )
