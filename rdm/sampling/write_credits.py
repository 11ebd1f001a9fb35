"""Credits of pictures from their databases, and `credits.txt` beside drawn ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rdm.database import RetrievalDatabase
from rdm.sampling.output import INDEX, stored_records
from rdm.sampling.recipe.credits import CREDITS, credits_text
from rdm.sampling.recipe.record import SampleRecord
from rdm.sources import open_source
from rdm.storage import Folder


def credits_of(records: Iterable[SampleRecord], databases: Iterable[RetrievalDatabase]) -> str:
    """Return the credits of pictures as a text, each photograph once.

    Args:
        records: of the pictures.
        databases: of their neighbors.
    """
    # What is embedded may name its authors in one list; other sources have none.
    sources = {database.version.source for database in databases}
    embedded = sorted(source for source in sources if source.startswith("samples://"))
    listed = [author for source in embedded for author in open_source(source).credits()]
    return credits_text(records, listed)


def write_credits(out: Path, databases: Iterable[RetrievalDatabase]) -> Path:
    """Write and return the credits of a folder's pictures.

    Args:
        out: a finished folder of pictures.
        databases: of their neighbors.
    """
    text = credits_of(stored_records(out / INDEX), databases)
    Folder(out).write_bytes(CREDITS, text.encode())
    return out / CREDITS
