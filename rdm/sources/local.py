"""What the sources have in common whose photographs are files at hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from rdm.sources.ledger import SKIPPED, Row, examined, unusable_row
from rdm.sources.listing import names_picture
from rdm.sources.transfer import FetchConfig


class LocalSource(ABC):
    """A source that reads one photograph after another."""

    @abstractmethod
    def read(self, location: str) -> bytes:
        """See Source."""

    def take(self, entries: Sequence[Row], scratch: Path, fetch: FetchConfig) -> Iterator[tuple[Row, bytes]]:
        """See Source; neither `scratch` nor `fetch` is needed."""
        del scratch, fetch
        return (self._take_one(entry) for entry in entries)

    def _take_one(self, entry: Row) -> tuple[Row, bytes]:
        location = entry["location"]
        if not names_picture(location):
            return unusable_row(entry, "not a picture by its name", SKIPPED), b""
        try:
            data = self.read(location)
        except OSError as error:
            return unusable_row(entry, f"cannot be read: {error.strerror or error}"), b""
        return examined(entry, data, location)
