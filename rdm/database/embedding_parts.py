"""Embedding parts: memory-mapped vectors whose rows, counted over all parts, are the patch ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rdm.errors import DatabaseError
from rdm.storage import Folder, Part

EmbeddingParts = Sequence[tuple[int, NDArray[np.float16]]]
"""`(first patch id, vectors [N, dim])` of each part, in order."""


def open_embeddings(
    folder: Folder, parts: Sequence[Part], dim: int
) -> list[tuple[int, NDArray[np.float16]]]:
    """Return `(first patch id, memory-mapped vectors [N, dim])` of each part.

    Raises:
        DatabaseError: a part has another shape than its description says.
        StorageError: a part is missing or truncated.
    """
    opened, first = [], 0
    for part in parts:
        vectors = folder.read_array(part.path)
        if vectors.shape != (part.num_rows, dim):
            raise DatabaseError(
                f"an embedding part has shape {vectors.shape}",
                where=folder.describe(part.path),
                fix="run `rdm database verify`",
            )

        opened.append((first, vectors))
        first += part.num_rows
    return opened


def count_rows(parts: EmbeddingParts) -> int:
    """Return the rows of all parts together."""
    return sum(len(vectors) for _, vectors in parts)


def gather(parts: EmbeddingParts, patch_ids: NDArray[np.int64]) -> NDArray[np.float16]:
    """Return the vectors [N, dim] of patches [N], part by part."""
    # Each part is asked once for all of its patches: its pages are read in one go.
    starts = np.array([first for first, _ in parts], np.int64)
    result = np.empty((len(patch_ids), parts[0][1].shape[1]), np.float16)
    owner = np.searchsorted(starts, patch_ids, side="right") - 1
    for number in np.unique(owner):
        rows = np.flatnonzero(owner == number)
        first, vectors = parts[number]
        result[rows] = vectors[patch_ids[rows] - first]
    return result


def since(parts: EmbeddingParts, first_id: int) -> list[tuple[int, NDArray[np.float16]]]:
    """Return the parts that start at a patch id or after it."""
    return [(first, vectors) for first, vectors in parts if first >= first_id]
