from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rdm.database.search.approximate import approximate_candidates, open_index
from rdm.database.search.exact import quantize
from rdm.database.search.index import ParentIndex, build_index, rebuild_reason, update_index
from rdm.database.search.index_settings import IndexConfig
from rdm.database.search.sharded_index import IndexedRows
from rdm.errors import DatabaseError
from rdm.storage import Folder, IndexDecision, IndexFacts

NONE = np.zeros(0, np.int64)


def stored(folder: Folder, *parts: np.ndarray, dead: np.ndarray = NONE) -> IndexedRows:
    """Write embedding parts into a folder; return them as rows to index."""
    paths = tuple(f"img_emb/{len(parts)}-{number}.npy" for number in range(len(parts)))
    for path, vectors in zip(paths, parts, strict=True):
        folder.write_array(path, vectors)
    return IndexedRows(folder, paths, dead)


def test_infos_are_written_and_measured(built: tuple[Folder, IndexFacts]) -> None:
    folder, infos = built
    assert folder.read_record("index/index_infos.json", IndexFacts) == infos
    assert (infos.num_vectors, infos.dim, infos.audit_queries) == (600, 16, 500)
    assert 0.8 <= infos.recall_at_20 <= 1


def test_two_builds_give_equal_bytes(
    built: tuple[Folder, IndexFacts], vectors: np.ndarray, tmp_path: Path
) -> None:
    build_index(stored(Folder(tmp_path), vectors), IndexConfig())
    for name in ("index/knn.index", "index/index_infos.json"):
        assert Folder(tmp_path).read_bytes(name) == built[0].read_bytes(name)


def infos(**fields: float) -> IndexFacts:
    known = IndexFacts(
        index_key="IVF1,Flat",
        index_param="nprobe=1",
        num_vectors=1000,
        dim=16,
        num_bytes=1,
        head_bytes=1,
        head_sha256="",
        recall_at_20=0.95,
        recall_ci95=0,
        audit_queries=500,
        built_num_vectors=1000,
        built_recall_at_20=0.95,
        decision=IndexDecision(action="built", reason="there was none"),
    )
    return known.model_copy(update=fields)


@pytest.mark.parametrize(
    ("parent", "recall", "num_vectors", "reason"),
    [
        (infos(), 0.95, 1000, ""),
        (infos(), 0.935, 1100, ""),
        (infos(), 0.925, 1000, "recall@20 fell from 0.9500 to 0.9250"),
        (infos(built_recall_at_20=0.96), 0.935, 1000, "recall@20 fell from 0.9600 to 0.9350"),
        (infos(recall_at_20=0.99), 0.96, 1000, "recall@20 fell from 0.9900 to 0.9600"),
        (infos(recall_at_20=0.81, built_recall_at_20=0.81), 0.795, 1000, "under min_recall 0.8"),
        (infos(), 0.95, 2000, ""),
        (infos(), 0.95, 2001, "it was built for 1000 rows and holds 2001"),
        (infos(), 0.95, 499, "it was built for 1000 rows and holds 499"),
    ],
)
def test_index_is_built_anew_when_its_recall_fell_or_its_size_changed_too_much(
    parent: IndexFacts, recall: float, num_vectors: int, reason: str
) -> None:
    found = rebuild_reason(
        parent, recall, num_vectors, IndexConfig(drift_margin=0.02, max_growth=2)
    )
    assert found.startswith(reason) or reason in found
    assert bool(found) == bool(reason)


def test_updated_index_finds_what_was_added_and_not_what_was_deleted(
    vectors: np.ndarray, tmp_path: Path
) -> None:
    folder, first, second = Folder(tmp_path), vectors[:500], vectors[500:]
    before = build_index(stored(folder, first), IndexConfig(), "index/1")
    dead = np.arange(0, 600, 7)[:60]
    after = update_index(
        stored(folder, first, second, dead=dead),
        IndexConfig(),
        "index/2",
        ParentIndex("index/1", before, 500, dead),
    )
    assert (after.decision.action, after.num_vectors) == ("extended", 600 - len(dead))
    index = open_index(folder, "index/2")
    found = approximate_candidates(index, vectors, 20)
    assert not np.isin(found, dead).any()
    assert set(range(500, 600)) - set(dead) <= set(found.ravel())


def test_update_leaves_the_index_of_the_parent_as_it_is(
    vectors: np.ndarray, tmp_path: Path
) -> None:
    folder, first, second = Folder(tmp_path), vectors[:500], vectors[500:]
    infos = build_index(stored(folder, first), IndexConfig(), "index/1")
    before = folder.read_bytes("index/1/knn.index")
    update_index(
        stored(folder, first, second),
        IndexConfig(),
        "index/2",
        ParentIndex("index/1", infos, 500, NONE),
    )
    assert folder.read_bytes("index/1/knn.index") == before


def test_two_updates_give_equal_bytes(vectors: np.ndarray, tmp_path: Path) -> None:
    folder, first, second = Folder(tmp_path), vectors[:500], vectors[500:]
    infos = build_index(stored(folder, first), IndexConfig(), "index/1")
    for place in ("index/2", "index/3"):
        update_index(
            stored(folder, first, second),
            IndexConfig(),
            place,
            ParentIndex("index/1", infos, 500, NONE),
        )
    assert folder.read_bytes("index/2/knn.index") == folder.read_bytes("index/3/knn.index")


def test_update_under_which_the_recall_falls_builds_the_index_anew(tmp_path: Path) -> None:
    """Lists made for sixteen tight clusters, of which one is probed, are of little use for
    noise."""
    rng = np.random.default_rng(0)
    clusters = rng.standard_normal((16, 16)).repeat(250, axis=0) + 0.05 * rng.standard_normal(
        (4000, 16)
    )
    noise = rng.standard_normal((4000, 16))
    parts = [
        quantize((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32))
        for points in (clusters, noise)
    ]
    folder, config = Folder(tmp_path), IndexConfig(target_recall=0, min_recall=0, drift_margin=0.03)
    infos = build_index(stored(folder, parts[0]), config, "index/1")
    after = update_index(
        stored(folder, *parts), config, "index/2", ParentIndex("index/1", infos, 4000, NONE)
    )
    assert after.decision.action == "built"
    assert after.decision.reason.startswith("recall@20 fell from ")
    assert folder.read_record("index/2/index_infos.json", IndexFacts) == after


def test_recall_under_the_least_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((3000, 16))
    unit = quantize((noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32))
    with pytest.raises(DatabaseError, match="under min_recall"):
        build_index(stored(Folder(tmp_path), unit), IndexConfig(target_recall=0, min_recall=1))
    assert not Folder(tmp_path).exists("index/knn.index")


@pytest.mark.parametrize("dead", [NONE, np.arange(600)])
def test_index_of_no_rows_is_an_error(
    vectors: np.ndarray, tmp_path: Path, dead: np.ndarray
) -> None:
    parts = [vectors] if len(dead) else [vectors[:0]]
    with pytest.raises(DatabaseError, match="nothing to index"):
        build_index(stored(Folder(tmp_path), *parts, dead=dead), IndexConfig())


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_part_without_rows_changes_nothing_in_the_index(
    vectors: np.ndarray, tmp_path: Path, empty: int
) -> None:
    parts = [vectors[:400], vectors[400:]]
    build_index(stored(Folder(tmp_path / "without"), *parts), IndexConfig())
    parts.insert(empty, vectors[:0])
    build_index(stored(Folder(tmp_path / "with"), *parts), IndexConfig())
    files = [(tmp_path / name / "index" / "knn.index").read_bytes() for name in ("without", "with")]
    assert files[0] == files[1]


@pytest.mark.parametrize("field", ["build_memory", "max_index_memory"])
def test_too_little_memory_is_an_error(vectors: np.ndarray, tmp_path: Path, field: str) -> None:
    with pytest.raises(DatabaseError, match="too little memory"):
        build_index(stored(Folder(tmp_path), vectors), IndexConfig.model_validate({field: "10B"}))
