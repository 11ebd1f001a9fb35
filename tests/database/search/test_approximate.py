from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rdm.database.search.approximate import open_index
from rdm.database.search.index_settings import IndexConfig
from rdm.database.search.recall import audit_recall
from rdm.errors import StorageError
from rdm.storage import Folder, IndexFacts

NONE = np.zeros(0, np.int64)


def test_opened_index_finds_what_it_was_audited_for(
    built: tuple[Folder, IndexFacts], vectors: np.ndarray
) -> None:
    audit = audit_recall(open_index(built[0]), [(0, vectors)], NONE, 500, IndexConfig().seed)
    assert audit.recall_at_20 == built[1].recall_at_20


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:90] + b"\xff" + data[91:]]
)
def test_damaged_head_is_a_storage_error(
    damage: Callable[[bytes], bytes], built: tuple[Folder, IndexFacts], tmp_path: Path
) -> None:
    folder = Folder(tmp_path)
    folder.write_record("index/index_infos.json", built[1])
    folder.write_bytes("index/knn.index", damage(built[0].read_bytes("index/knn.index")))
    with pytest.raises(StorageError, match="the index is damaged"):
        open_index(folder)


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 10])
def test_missing_or_damaged_index_is_a_storage_error(content: bytes | None, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    if content is not None:
        folder.write_bytes("index/knn.index", content)
    with pytest.raises(StorageError):
        open_index(folder)
