from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, NeighborTable, RetrievalDatabase, build_neighbors
from rdm.errors import ConcurrentWriterError, DatabaseError, FailureBudgetError, StorageError
from rdm.sources import CropConfig, QuerySetConfig
from rdm.storage import Folder, VersionStore

Contents = Callable[[Path], dict[str, bytes]]


def config_of(photos: Path, **fields: object) -> NeighborConfig:
    queries = QuerySetConfig(
        source=f"folder://{photos}", crop=CropConfig(frame_size=40, patch_size=30), images_per_shard=4
    )
    return NeighborConfig.model_validate({"queries": queries, "k_stored": 6, **fields})


def build_table(root: Path, config: NeighborConfig, name: str = "train") -> dict[str, Any]:
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        return build_neighbors(str(root), name, config, pool)


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built / "db", tmp_path / "db")
    return tmp_path / "db"


@pytest.mark.parametrize("exact", [True, False])
def test_table_holds_the_neighbors_of_every_crop(root: Path, photos: Path, exact: bool) -> None:
    info = build_table(root, config_of(photos, exact=exact))
    database = RetrievalDatabase.open(str(root))
    table = NeighborTable(database.folder, "train")
    assert (info["stems"], info["database_version"]) == (["00000", "00001", "00002"], 2)
    for stem in info["stems"]:
        keys, ids, similarities = table.shard(stem)
        assert len(set(keys)) == len(keys) == len(ids)
        assert (ids.shape[1], ids.dtype, similarities.dtype) == (6, np.int64, np.float32)
        assert (np.diff(similarities, axis=1) <= 0).all()
        expected = database.search_vectors(np.asarray(table.embeddings(stem)), 6, exact=exact)
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_array_equal(similarities, expected[1])
    assert table.all_ids.shape == (info["num_queries"], 6)


def test_second_run_does_nothing_and_lost_shards_alone_are_done_again(
    root: Path, photos: Path, contents: Contents
) -> None:
    build_table(root, config_of(photos))
    before = contents(root)
    times = {path: path.stat().st_mtime_ns for path in (root / "neighbors" / "train").rglob("0*.*")}
    (root / "neighbors" / "train" / "000002" / "00001.npy").write_bytes(b"")
    build_table(root, config_of(photos))
    assert contents(root) == before
    assert {path.name for path, time in times.items() if path.stat().st_mtime_ns != time} == {
        "00001.npy",
        "00001.parquet",
    }


def test_shards_may_finish_in_any_order(root: Path, photos: Path, tmp_path: Path, contents: Contents) -> None:
    (photos / "p01.jpg").write_bytes(b"words")
    (photos / "p09.jpg").write_bytes(b"")

    class Backwards:
        def map(self, function: Callable[[Any], Any], shards: list[Any], **_: object) -> list[tuple[int, Any]]:
            return [(position, function(shard)) for position, shard in reversed(list(enumerate(shards)))]

    shutil.copytree(root, tmp_path / "other")
    config = config_of(photos, min_success_rate=0.5)
    build_table(root, config)
    build_neighbors(str(tmp_path / "other"), "train", config, Backwards())  # type: ignore[arg-type]
    assert contents(root) == contents(tmp_path / "other")


def test_changed_setting_is_looked_up_again(root: Path, photos: Path) -> None:
    build_table(root, config_of(photos))
    build_table(root, config_of(photos, k_stored=3))
    assert NeighborTable(Folder(root), "train").all_ids.shape[1] == 3


def test_unusable_photographs_are_listed(root: Path, photos: Path) -> None:
    (photos / "p01.jpg").write_bytes(b"words")
    info = build_table(root, config_of(photos))
    assert [list(failure) for failure in info["failures"]] == [["p01.jpg", "not a picture"]]


def test_shard_without_a_usable_photograph_is_empty(root: Path, photos: Path) -> None:
    for number in range(4):
        (photos / f"p{number:02d}.jpg").write_bytes(b"")
    build_table(root, config_of(photos, min_success_rate=0.5))
    keys, ids, similarities = NeighborTable(Folder(root), "train").shard("00000")
    assert (keys, ids.shape, similarities.shape) == ([], (0, 6), (0, 6))


def test_too_many_unusable_photographs_are_an_error(root: Path, photos: Path) -> None:
    for number in range(0, 12, 3):
        (photos / f"p{number:02d}.jpg").write_bytes(b"words")
    with pytest.raises(FailureBudgetError, match=r"66\.7%.*p00\.jpg \(not a picture\)"):
        build_table(root, config_of(photos))
    assert NeighborTable.names(Folder(root)) == []


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "."])
def test_name_must_be_a_word(root: Path, photos: Path, name: str) -> None:
    with pytest.raises(DatabaseError, match="cannot name a query set"):
        build_table(root, config_of(photos), name)


def test_root_must_be_a_database(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(DatabaseError, match="not a retrieval database"):
        build_table(tmp_path / "none", config_of(photos))


def test_more_neighbors_than_patches_is_an_error(root: Path, photos: Path) -> None:
    with pytest.raises(DatabaseError, match="k = 500"):
        build_table(root, config_of(photos, k_stored=500))


def test_table_is_not_written_beside_another_writer(root: Path, photos: Path) -> None:
    with VersionStore(Folder(root)).writer(), pytest.raises(ConcurrentWriterError):
        build_table(root, config_of(photos))


def test_unknown_table_says_how_to_make_one(root: Path) -> None:
    with pytest.raises(DatabaseError) as caught:
        NeighborTable(Folder(root), "train")
    assert "rdm neighbors build" in caught.value.fix


def test_names_of_the_tables(root: Path, photos: Path) -> None:
    build_table(root, config_of(photos), "b")
    build_table(root, config_of(photos), "a")
    assert NeighborTable.names(Folder(root)) == ["a", "b"]


def test_missing_shard_is_a_storage_error(root: Path, photos: Path) -> None:
    build_table(root, config_of(photos))
    (root / "neighbors" / "train" / "000002" / "00001.npy").unlink()
    with pytest.raises(StorageError):
        NeighborTable(Folder(root), "train").embeddings("00001")
