"""`credits.txt` beside drawn pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rdm.database import RetrievalDatabase
from rdm.sampling.credits import CREDITS, credits_text
from rdm.sampling.output import INDEX, stored_records
from rdm.sources import open_source
from rdm.storage import Folder


def write_credits(out: Path, databases: Iterable[RetrievalDatabase]) -> Path:
    """Write and return the credits of a folder's pictures, each photograph once.

    Args:
        out: a finished folder of pictures.
        databases: of their neighbors.
    """
    # What is embedded may name its authors in one list; other sources have none.
    sources = {database.version.source for database in databases}
    embedded = sorted(source for source in sources if source.startswith("samples://"))
    listed = [author for source in embedded for author in open_source(source).credits()]
    text = credits_text(stored_records(out / INDEX), listed)
    Folder(out).write_bytes(CREDITS, text.encode())
    return out / CREDITS
