from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from rdm.database.index import IndexConfig, approximate_candidates, audit_recall, build_index, open_index
from rdm.database.search import exact_search, quantize
from rdm.errors import DatabaseError, StorageError
from rdm.storage import Folder

NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Six hundred unit vectors in eight clusters."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((8, 16)).repeat(75, axis=0) + 0.3 * rng.standard_normal((600, 16))
    return quantize((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32))


@pytest.fixture(scope="module")
def built(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, dict[str, object]]:
    folder = Folder(tmp_path_factory.mktemp("index"))
    return folder, build_index(folder, [(0, vectors)], NONE, IndexConfig())


def test_infos_are_written_and_measured(built: tuple[Folder, dict[str, object]]) -> None:
    folder, infos = built
    assert folder.read_json("index/index_infos.json") == infos
    assert (infos["num_vectors"], infos["dim"], infos["audit_queries"]) == (600, 16, 500)
    assert 0.8 <= infos["recall_at_20"] <= 1  # type: ignore[operator]


def test_two_builds_give_equal_bytes(
    built: tuple[Folder, dict[str, object]], vectors: np.ndarray, tmp_path: Path
) -> None:
    build_index(Folder(tmp_path), [(0, vectors)], NONE, IndexConfig())
    for name in ("index/knn.index", "index/index_infos.json"):
        assert Folder(tmp_path).read_bytes(name) == built[0].read_bytes(name)


def test_opened_index_finds_what_it_was_audited_for(
    built: tuple[Folder, dict[str, object]], vectors: np.ndarray
) -> None:
    audit = audit_recall(open_index(built[0]), [(0, vectors)], NONE, 500, IndexConfig().seed)
    assert audit["recall_at_20"] == built[1]["recall_at_20"]


def kinds() -> dict[str, faiss.Index]:
    quantizer = faiss.IndexFlatIP(16)
    ivf = faiss.IndexIVFFlat(quantizer, 16, 8, faiss.METRIC_INNER_PRODUCT)
    ivf.nprobe = 8
    rotated = faiss.index_factory(16, "OPQ4_16,IVF8,PQ4x4", faiss.METRIC_INNER_PRODUCT)
    return {
        "flat": faiss.IndexFlatIP(16),
        "hnsw": faiss.IndexHNSWFlat(16, 16, faiss.METRIC_INNER_PRODUCT),
        "ivf": ivf,
        "rotated": rotated,
    }


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "rotated"])
def test_tombstones_are_never_candidates(kind: str, vectors: np.ndarray) -> None:
    index = kinds()[kind]
    wide = vectors.astype(np.float32)
    index.train(wide)
    index.add(wide)
    dead = np.arange(0, 600, 3)
    found = approximate_candidates(index, vectors[:50], 20, dead)
    assert not np.isin(found, dead).any()
    assert (found >= 0).mean() > 0.9


def test_recall_of_a_complete_index_is_one(vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors.astype(np.float32))
    assert audit_recall(index, [(0, vectors)], NONE, 500, 0) == {
        "recall_at_20": 1.0,
        "recall_ci95": 0.0,
        "audit_queries": 500,
    }


def test_recall_of_an_index_over_half_the_rows_is_the_share_of_neighbors_there(vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors[:300].astype(np.float32))
    truth, _ = exact_search(vectors, [(0, vectors)], 20, excluded=NONE)
    audit = audit_recall(index, [(0, vectors)], NONE, 600, 0)
    assert audit["recall_at_20"] == pytest.approx((truth < 300).mean())
    assert audit["recall_ci95"] > 0


def test_audit_with_few_living_rows_lowers_k(vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors.astype(np.float32))
    assert audit_recall(index, [(0, vectors)], np.arange(3, 600), 500, 0)["recall_at_20"] == 1.0


def test_recall_under_the_least_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((3000, 16))
    unit = quantize((noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32))
    with pytest.raises(DatabaseError, match="under min_recall"):
        build_index(Folder(tmp_path), [(0, unit)], NONE, IndexConfig(target_recall=0, min_recall=1))
    assert not Folder(tmp_path).exists("index/knn.index")


def test_too_little_memory_is_an_error(vectors: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="too little memory"):
        build_index(Folder(tmp_path), [(0, vectors)], NONE, IndexConfig(build_memory="1KB", max_index_memory="1KB"))


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 10])
def test_missing_or_damaged_index_is_a_storage_error(content: bytes | None, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    if content is not None:
        folder.write_bytes("index/knn.index", content)
    with pytest.raises(StorageError):
        open_index(folder)
