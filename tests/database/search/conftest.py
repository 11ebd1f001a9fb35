"""Vectors and an index over them, which tests of indexes read."""

from __future__ import annotations

import numpy as np
import pytest

from rdm.database.search.exact import quantize
from rdm.database.search.index import build_index
from rdm.database.search.index_settings import IndexConfig
from rdm.database.search.sharded_index import IndexedRows
from rdm.storage import Folder, IndexFacts


@pytest.fixture(scope="session")
def vectors() -> np.ndarray:
    """Six hundred unit vectors in eight clusters."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((8, 16)).repeat(75, axis=0) + 0.3 * rng.standard_normal((600, 16))
    return quantize((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32))


@pytest.fixture(scope="session")
def built(
    vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Folder, IndexFacts]:
    """A folder with an index over the vectors, and its facts."""
    folder = Folder(tmp_path_factory.mktemp("index"))
    folder.write_array("img_emb/0.npy", vectors)
    rows = IndexedRows(folder, ("img_emb/0.npy",), np.zeros(0, np.int64))
    return folder, build_index(rows, IndexConfig())
