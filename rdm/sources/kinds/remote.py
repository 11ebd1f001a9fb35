"""The base of sources whose photographs are fetched from URLs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from rdm.errors import SourceError
from rdm.sources.fetching.rounds import Candidate, fetch_photographs
from rdm.sources.http.client import FetchConfig
from rdm.sources.ledger import Row
from rdm.sources.source import Author


class RemoteSource(ABC):
    """A source whose photographs are fetched once, into a database, shard by shard."""

    spec: str

    @abstractmethod
    def candidates(self, entry: Row) -> Sequence[Candidate]:
        """Return the places of the photograph of a listing's row, best first."""

    def take(
        self, entries: Sequence[Row], scratch: Path, fetch: FetchConfig
    ) -> Iterator[tuple[Row, bytes]]:
        """See Source."""
        return fetch_photographs(entries, self.candidates, scratch, fetch)

    def read(self, location: str, limit: int | None = None) -> bytes:
        """Raise SourceError: see Source."""
        raise self.not_at_hand()

    def not_at_hand(self) -> SourceError:
        """Return the error for work that needs single photographs, again and again."""
        return SourceError(
            "photographs behind URLs are fetched only into a database",
            where=self.spec,
            fix=f"rdm database build --root DB --source '{self.spec}', then database://DB as "
            "the source here",
        )

    def credits(self) -> tuple[Author, ...]:
        """Return nobody: authors are named photograph by photograph."""
        return ()
