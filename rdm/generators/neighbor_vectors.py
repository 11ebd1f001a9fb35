"""Embeddings of a database's patches as they condition a network."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rdm.database import RetrievalDatabase


def conditioning_vectors(
    database: RetrievalDatabase, ids: NDArray[np.int64], embedding: Literal["unit", "raw"]
) -> NDArray[np.float16]:
    """Return embeddings [..., D] of patches [...], of unit length or with their norms."""
    unit = database.embeddings(ids)
    if embedding == "unit":
        return unit
    return with_norms(unit, database.patch_rows(ids).column("norm").to_numpy().reshape(ids.shape))


def with_norms(unit: NDArray[np.float16], norms: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return unit vectors [..., D] at the lengths [...] that they had."""
    return (unit.astype(np.float32) * norms[..., None]).astype(np.float16)
