"""`urls://LIST`: the photographs that a list names by URL."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import pyarrow as pa

from rdm.sources.fetching.rounds import Candidate
from rdm.sources.http.urls import public_url
from rdm.sources.kinds.local import local_path
from rdm.sources.kinds.remote import RemoteSource
from rdm.sources.ledger import Row
from rdm.sources.lists.list_files import list_parts, read_list
from rdm.sources.source import listing_of

logger = logging.getLogger(__name__)

COLUMNS = {
    "image_id": ("image_id", "id"),
    "location": ("url", "image_url"),
    "etag": ("etag",),
    "author": ("author",),
    "title": ("title",),
    "license": ("licence", "license"),
    "landing_page": ("landing_page",),
}
"""Columns of a listing, and their names in lists, the preferred name first."""


class UrlListSource(RemoteSource):
    """A list of URLs, one photograph each.

    The image id is the list's, or the URL without its secrets. A photograph counts as changed when
    its `etag` does, or without one its URL; a new signature or token in it changes nothing.
    """

    def __init__(self, rest: str) -> None:
        self.path = local_path("urls", rest)
        self.spec = f"urls://{self.path}"
        list_parts(self.path)

    def listing(self) -> pa.Table:
        """See Source.

        Raises:
            SourceError: the list cannot be read, has no column `url`, or gives two URLs one id.
        """
        # Read all known columns; of two names for one column the preferred one wins.
        titles = {name for names in COLUMNS.values() for name in names}
        found = read_list(self.path, titles, url=COLUMNS["location"]).columns
        columns = {
            column: found[name].to_pylist()
            for column, names in COLUMNS.items()
            for name in reversed(names)
            if name in found
        }

        # Ids and etags never hold a secret, so a new signature changes nothing.
        urls = [public_url(url) for url in columns["location"]]
        digests = [hashlib.sha256(url.encode()).hexdigest()[:16] for url in urls]
        for name, defaults in (("image_id", urls), ("etag", digests)):
            own = columns.get(name, defaults)
            columns[name] = [value or default for value, default in zip(own, defaults, strict=True)]

        lines = self._without_repeats(columns["image_id"], urls)
        return listing_of(
            {name: pa.array(values, pa.string()).take(lines) for name, values in columns.items()}
        )

    def _without_repeats(self, ids: Sequence[str], urls: Sequence[str]) -> pa.Array:
        """Return the numbers of the lines that name their photograph first."""
        first: dict[tuple[str, str], int] = {}
        for number, pair in enumerate(zip(ids, urls, strict=True)):
            first.setdefault(pair, number)
        if len(first) < len(urls):
            logger.warning(
                "%s: lines that name a photograph again, left out: %d",
                self.path,
                len(urls) - len(first),
            )
        return pa.array(list(first.values()), pa.int64())

    def candidates(self, entry: Row) -> Sequence[Candidate]:
        """See RemoteSource."""
        return (Candidate(entry["location"]),)
