"""Open an index, and look up candidates, which exact similarities then put in order."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

import hashlib

import faiss
import numpy as np
from numpy.typing import NDArray

from rdm.database.contract import INDEX_NAME, INFOS_NAME, PUBLISHED
from rdm.database.search.search_parameters import open_mapped
from rdm.errors import StorageError
from rdm.storage import Folder, IndexFacts
from rdm.storage.atomic import read_error


def check_head(folder: Folder, place: str, facts: IndexFacts) -> None:
    """Raise StorageError unless an index file has its size, and its head its digest.

    faiss crashes on a damaged head. The lists that follow may be large and are left to `verify`:
    searching is safe whatever bytes are in them.
    """
    path = f"{place}/{INDEX_NAME}"
    with open(folder.local(path), "rb") as file:
        whole = hashlib.sha256(file.read(facts.head_bytes)).hexdigest() == facts.head_sha256
    if not whole or folder.size(path) != facts.num_bytes:
        raise StorageError(
            "the index is damaged", where=folder.describe(path), fix="run `rdm database verify`"
        )


def open_index(
    folder: Folder, place: str = PUBLISHED, facts: IndexFacts | None = None
) -> faiss.Index:
    """Open an index memory-mapped; its file holds its search parameters.

    Args:
        folder: the database's.
        place: the index's folder.
        facts: the version's record of the index; None: the file beside it.

    Raises:
        StorageError: it is missing or damaged.
    """
    path = f"{place}/{INDEX_NAME}"
    try:
        known = facts or folder.read_record(f"{place}/{INFOS_NAME}", IndexFacts)
        check_head(folder, place, known)
        return open_mapped(folder.local(path))
    except (RuntimeError, OSError) as error:
        raise read_error(error, folder.describe(path)) from error


def approximate_candidates(
    index: faiss.Index, queries: NDArray[np.floating], k: int
) -> NDArray[np.int64]:
    """Return candidate ids [B, k] of an index without deleted patches; -1 where there are fewer."""
    return index.search(np.ascontiguousarray(queries, np.float32), k)[1]
