from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.pool import Pool
from rdm.database import NeighborConfig, NeighborTable, RetrievalDatabase, build_neighbors
from rdm.database.neighbors.table import TableFacts
from rdm.errors import ConcurrentWriterError, DatabaseError, FailureBudgetError, StorageError
from rdm.sources import CropConfig, QuerySetConfig
from rdm.storage import Folder, VersionStore

Contents = Callable[[Path], dict[str, bytes]]


def config_of(photos: Path, **fields: object) -> NeighborConfig:
    queries = QuerySetConfig(
        source=f"folder://{photos}",
        crop=CropConfig(frame_size=40, patch_size=30),
        images_per_shard=4,
    )
    return NeighborConfig.model_validate({"queries": queries, "k_stored": 6, **fields})


def build_table(root: Path, config: NeighborConfig, name: str = "train") -> TableFacts:
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
    assert (info.stems, info.database_version) == (["00000", "00001", "00002"], 2)
    for stem in info.stems:
        keys, ids, similarities = table.shard(stem)
        assert len(set(keys)) == len(keys) == len(ids)
        assert (ids.shape[1], ids.dtype, similarities.dtype) == (6, np.int64, np.float32)
        assert (np.diff(similarities, axis=1) <= 0).all()
        expected = database.search_vectors(np.asarray(table.embeddings(stem)), 6, exact=exact)
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_array_equal(similarities, expected[1])
    assert table.all_ids.shape == (info.num_queries, 6)


@pytest.mark.parametrize("exact", [True, False])
def test_own_photograph_is_excluded_and_recorded(root: Path, photos: Path, exact: bool) -> None:
    """The query photographs are those of the database, under other names."""
    for number in range(12):
        (photos / f"p{number:02d}.jpg").rename(photos / f"q{number:02d}.jpg")
    info = build_table(root, config_of(photos, exact=exact, exclude_self=True))
    database = RetrievalDatabase.open(str(root))
    table = NeighborTable(database.folder, "train")
    recorded = 0
    for stem in info.stems:
        keys, ids, _ = table.shard(stem)
        excluded = table.excluded(stem)[0]
        recorded += int((excluded >= 0).sum())
        for key, neighbors, others in zip(keys, ids, excluded, strict=True):
            own = key.partition("/")[0].replace("q", "p")
            assert own not in {record.image_id for record in database.records(neighbors)}
            assert {record.image_id for record in database.records(others[others >= 0])} <= {own}
    assert info.num_excluded == recorded > 12


def test_equal_image_ids_count_where_they_mean_the_same_photograph(
    root: Path, photos: Path, encoded: Callable[..., bytes]
) -> None:
    for number in range(12):
        (photos / f"p{number:02d}.jpg").write_bytes(encoded(number, size=(96, 80)))
    assert build_table(root, config_of(photos, exclude_self=True)).num_excluded == 0
    info = build_table(root, config_of(photos, exclude_self=True, shared_image_ids=True))
    assert info.num_excluded > 12


def test_near_duplicates_are_excluded_and_recorded(root: Path, photos: Path) -> None:
    build_table(root, config_of(photos), "all")
    info = build_table(root, config_of(photos, exclude_above=0.99), "others")
    folder = Folder(root)
    everything, others = NeighborTable(folder, "all"), NeighborTable(folder, "others")
    found = 0
    for stem in info.stems:
        (_, ids, similarities), (_, kept, least) = everything.shard(stem), others.shard(stem)
        excluded, above = others.excluded(stem)
        assert (least < np.float32(0.99)).all()
        assert (above[excluded >= 0] >= np.float32(0.99)).all()
        for row in range(len(ids)):
            expected = [*excluded[row][excluded[row] >= 0].tolist(), *kept[row].tolist()]
            assert ids[row].tolist() == expected[:6]
        found += int((similarities >= np.float32(0.99)).sum())
    assert found > 0


def test_crop_that_has_too_few_neighbors_left_is_an_error(root: Path, photos: Path) -> None:
    with pytest.raises(DatabaseError, match="crops lack neighbors") as caught:
        build_table(root, config_of(photos, exclude_above=0.01))
    assert "exclude_above" in caught.value.fix


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


def test_shards_may_finish_in_any_order(
    root: Path, photos: Path, tmp_path: Path, contents: Contents
) -> None:
    (photos / "p01.jpg").write_bytes(b"words")
    (photos / "p09.jpg").write_bytes(b"")

    class Backwards:
        def __init__(self, pool: Pool) -> None:
            self.pool = pool
            self.config, self.unseen = pool.config, pool.unseen

        def map(
            self, function: Callable[[Any], Any], shards: list[Any], **_: object
        ) -> list[tuple[int, Any]]:
            return [
                (position, function(shard)) for position, shard in reversed(list(enumerate(shards)))
            ]

    shutil.copytree(root, tmp_path / "other")
    config = config_of(photos, min_success_rate=0.5)
    build_table(root, config)
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_neighbors(str(tmp_path / "other"), "train", config, Backwards(pool))  # type: ignore[arg-type]
    assert contents(root) == contents(tmp_path / "other")


def test_changed_setting_is_looked_up_again(root: Path, photos: Path) -> None:
    build_table(root, config_of(photos))
    build_table(root, config_of(photos, k_stored=3))
    assert NeighborTable(Folder(root), "train").all_ids.shape[1] == 3


def test_unusable_photographs_are_listed(root: Path, photos: Path) -> None:
    (photos / "p01.jpg").write_bytes(b"words")
    info = build_table(root, config_of(photos))
    assert [list(failure) for failure in info.failures] == [["p01.jpg", "not a picture"]]


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


def test_tables_of_one_query_set_that_exclude_differently_are_not_chosen_from(
    root: Path, photos: Path
) -> None:
    folder = Folder(root)
    digest = build_table(root, config_of(photos), "b").queries_digest
    build_table(root, config_of(photos, exact=False), "a")
    chosen = NeighborTable.of_query_set(folder, digest)
    assert (chosen and chosen.name, NeighborTable.of_query_set(folder, "other")) == ("a", None)
    build_table(root, config_of(photos, exclude_self=True), "c")
    with pytest.raises(DatabaseError, match="a, b, c are of one query set"):
        NeighborTable.of_query_set(folder, digest)


def test_missing_shard_is_a_storage_error(root: Path, photos: Path) -> None:
    build_table(root, config_of(photos))
    (root / "neighbors" / "train" / "000002" / "00001.npy").unlink()
    with pytest.raises(StorageError):
        NeighborTable(Folder(root), "train").embeddings("00001")
