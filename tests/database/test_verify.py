from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, build_neighbors
from rdm.database.verify import verify_database
from rdm.errors import DatabaseError
from rdm.sources import CropConfig, QuerySetConfig
from rdm.storage import Folder, VersionStore

PARTS = [
    "images/00001.tar",
    "images/00001.parquet",
    "patches/patches_0002.parquet",
    "img_emb/img_emb_0000.npy",
    "metadata/metadata_0001.parquet",
    "index/000001/knn.index",
    "index/000001/index_infos.json",
]


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built / "db", tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture
def with_neighbors(root: Path, built: Path) -> Path:
    queries = QuerySetConfig(source=f"folder://{built}/photos", crop=CropConfig(frame_size=40, patch_size=24))
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_neighbors(str(root), "train", NeighborConfig(queries=queries, k_stored=4), pool)
    return root


TABLE = "neighbors/train/000002/00000.parquet"


def rewrite_shard(root: Path, **columns: np.ndarray) -> None:
    folder = Folder(root)
    table = folder.read_table(TABLE)
    for name, values in columns.items():
        array = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        table = table.set_column(table.column_names.index(name), name, array)
    folder.write_table(TABLE, table)
    record_digests(root)


def record_digests(root: Path) -> None:
    store = VersionStore(Folder(root))
    version = store.require()
    parts = [store.describe_part(part.kind, part.path, part.num_rows) for part in version.parts]
    store.commit(version.model_copy(update={"parts": parts}))


def test_whole_database_has_no_findings(with_neighbors: Path) -> None:
    assert verify_database(str(with_neighbors)) == []


@pytest.mark.parametrize("name", PARTS)
def test_one_flipped_bit_is_found_and_named(root: Path, name: str) -> None:
    data = bytearray((root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (root / name).write_bytes(data)
    assert verify_database(str(root)) == [f"{name} differs from its recorded digest"]


@pytest.mark.parametrize("name", PARTS)
def test_missing_part_is_named(root: Path, name: str) -> None:
    (root / name).unlink()
    assert verify_database(str(root)) == [f"{name} is missing"]


def test_tampered_version_is_refused(root: Path) -> None:
    path = root / "versions" / "000001.json"
    path.write_bytes(path.read_bytes().replace(b'"num_images": 12', b'"num_images": 13'))
    with pytest.raises(DatabaseError, match="differs from what the manifest promises"):
        verify_database(str(root))


def test_vector_that_is_no_unit_vector_is_found(root: Path) -> None:
    folder = Folder(root)
    folder.write_array("img_emb/img_emb_0000.npy", np.asarray(folder.read_array("img_emb/img_emb_0000.npy")) * 2)
    record_digests(root)
    assert verify_database(str(root)) == [
        "the embedding part that starts at patch 0 has vectors that are not unit vectors"
    ]


def test_neighbor_that_does_not_exist_is_found(with_neighbors: Path) -> None:
    ids = np.array(Folder(with_neighbors).read_table(TABLE)["neighbor_ids"].to_pylist())
    ids[0, 0] = 9999
    rewrite_shard(with_neighbors, neighbor_ids=ids)
    assert verify_database(str(with_neighbors)) == [f"{TABLE} names patches that do not exist"]


def test_unsorted_neighbors_are_found(with_neighbors: Path) -> None:
    table = Folder(with_neighbors).read_table(TABLE)
    rewrite_shard(with_neighbors, similarities=np.array(table["similarities"].to_pylist(), np.float32)[:, ::-1])
    assert verify_database(str(with_neighbors)) == [f"{TABLE} is not sorted by similarity"]


@pytest.mark.parametrize("name", ["00000.parquet", "00000.npy", "queryset.json"])
def test_one_flipped_bit_of_a_neighbor_table_is_found_and_named(with_neighbors: Path, name: str) -> None:
    path = with_neighbors / "neighbors" / "train" / "000002" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert verify_database(str(with_neighbors)) == [f"neighbors/train/000002/{name} differs from its recorded digest"]


def test_neighbor_table_that_is_missing_is_named(with_neighbors: Path) -> None:
    (with_neighbors / TABLE).unlink()
    assert verify_database(str(with_neighbors)) == [f"{TABLE} is missing"]


def test_deleted_patch_in_a_neighbor_table_is_found(with_neighbors: Path) -> None:
    store = VersionStore(Folder(with_neighbors))
    version = store.require()
    dead = Folder(with_neighbors).read_table(TABLE)["neighbor_ids"].to_pylist()[0][0]
    infos = {**version.index, "num_vectors": version.num_live_patches - 1}
    store.commit(version.model_copy(update={"tombstones": [dead], "index": infos}))
    assert verify_database(str(with_neighbors)) == [f"{TABLE} names deleted patches"]


def test_index_of_another_size_is_found(root: Path) -> None:
    store = VersionStore(Folder(root))
    version = store.require()
    store.commit(version.model_copy(update={"tombstones": [0]}))
    rows = version.num_patches
    assert verify_database(str(root)) == [f"index/000001/knn.index has {rows} rows for {rows - 1} patches"]


def test_published_index_that_is_another_is_found(root: Path) -> None:
    (root / "index" / "knn.index").unlink()
    (root / "index" / "knn.index").write_bytes(b"x")
    assert verify_database(str(root)) == ["index/knn.index differs from its recorded digest"]


def test_folder_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="not a retrieval database"):
        verify_database(str(tmp_path))
