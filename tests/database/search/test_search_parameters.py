from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database.search.approximate import open_index
from rdm.database.search.exact import quantize
from rdm.database.search.index import ParentIndex, build_index, publish_index, update_index
from rdm.database.search.index_settings import IndexConfig
from rdm.database.search.recall import audit_recall
from rdm.database.search.search_parameters import set_parameters, write_parameters
from rdm.database.search.sharded_index import (
    IndexedRows,
    add_rows,
    build_sharded,
    one_thread,
    train,
    write_index,
)
from rdm.storage import Folder
from rdm.storage.records import IndexFacts

NONE = np.zeros(0, np.int64)
KEYS = {
    "IVF64,Flat": "nprobe=24",
    "IVF64_HNSW32,Flat": "nprobe=24,quantizer_efSearch=48",
    "IVF64_HNSW32,SQ8": "nprobe=24,quantizer_efSearch=48",
    "PCAR8,IVF64_HNSW32,PQ2x4": "nprobe=24,quantizer_efSearch=48",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> IndexedRows:
    """Three thousand random unit vectors of 16 numbers in three parts: their neighbors lie in many
    lists."""
    noise = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    unit = quantize(noise / np.linalg.norm(noise, axis=1, keepdims=True))
    folder = Folder(tmp_path_factory.mktemp("rows"))
    for number, part in enumerate(np.split(unit, [1000, 2500])):
        folder.write_array(f"{number}.npy", part)
    return IndexedRows(folder, ("0.npy", "1.npy", "2.npy"), NONE)


def some_of(rows: IndexedRows, count: int) -> IndexedRows:
    """Return the rows of the first parts, as a version before an update has them."""
    return IndexedRows(rows.folder, rows.paths[:count], NONE)


def bare(folder: Folder, path: str) -> faiss.Index:
    """Open an index as any other tool does."""
    return faiss.read_index(str(folder.local(path)))


@pytest.fixture(scope="module")
def infos(rows: IndexedRows) -> IndexFacts:
    """The infos of an index over all rows, in `index/1` and published."""
    infos = build_index(rows, IndexConfig(), "index/1")
    publish_index(rows.folder, "index/1")
    return infos


@pytest.mark.parametrize("path", ["index/knn.index", "image.index"])
def test_bare_index_of_many_lists_finds_what_it_was_audited_for(
    rows: IndexedRows, infos: IndexFacts, path: str
) -> None:
    index = bare(rows.folder, path)
    ivf = faiss.extract_index_ivf(index)
    assert ivf.nlist >= 64
    assert infos.index_param == f"nprobe={ivf.nprobe}" != "nprobe=1"
    audit = audit_recall(index, rows.parts, NONE, 500, IndexConfig().seed)
    assert audit.recall_at_20 == infos.recall_at_20 >= 0.95


@pytest.mark.parametrize("key", KEYS)
def test_written_file_is_the_one_that_faiss_writes_of_a_tuned_index(
    rows: IndexedRows, key: str, tmp_path: Path
) -> None:
    whole = train(rows, key, rows.living)
    with one_thread():
        for first, vectors in rows.parts:
            add_rows(whole, first, vectors, NONE)
    set_parameters(whole, KEYS[key])
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_sharded(rows, key, rows.living, tmp_path / "knn.index", 1, pool)
    write_parameters(tmp_path / "knn.index", KEYS[key])
    assert (tmp_path / "knn.index").read_bytes() == faiss.serialize_index(whole).tobytes()


@pytest.mark.parametrize("key", KEYS)
def test_bare_index_has_the_parameters_that_were_written(
    rows: IndexedRows, key: str, tmp_path: Path
) -> None:
    write_index(train(rows, key, rows.living), tmp_path / "knn.index", "a test")
    write_parameters(tmp_path / "knn.index", KEYS[key])
    index = faiss.read_index(str(tmp_path / "knn.index"))  # held: the inner ones are parts of it
    ivf = faiss.extract_index_ivf(index)
    assert ivf.nprobe == 24
    quantizer = faiss.downcast_index(ivf.quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        assert quantizer.hnsw.efSearch == 48


def test_updated_index_keeps_its_parameters_in_the_file(rows: IndexedRows) -> None:
    before = build_index(some_of(rows, 2), IndexConfig(), "index/2")
    dead = np.arange(0, 2500, 50)
    updated = IndexedRows(rows.folder, rows.paths, dead)
    after = update_index(
        updated, IndexConfig(), "index/3", ParentIndex("index/2", before, 2500, dead)
    )
    assert (after.decision.action, after.index_param) == (
        "extended",
        before.index_param,
    )
    updated_file = bare(rows.folder, "index/3/knn.index")
    assert (
        after.index_param == f"nprobe={faiss.extract_index_ivf(updated_file).nprobe}" != "nprobe=1"
    )
    audit = audit_recall(updated_file, rows.parts, dead, 500, IndexConfig().seed)
    assert audit.recall_at_20 == after.recall_at_20 >= 0.9


def test_opened_index_finds_what_a_bare_one_finds(rows: IndexedRows, infos: IndexFacts) -> None:
    queries = np.asarray(rows.parts[0][1][:50], np.float32)
    ours = open_index(rows.folder, "index/1", infos).search(queries, 20)[1]
    np.testing.assert_array_equal(
        bare(rows.folder, "index/1/knn.index").search(queries, 20)[1], ours
    )
