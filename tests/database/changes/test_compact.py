from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.building.jobs import update_builder, update_plan
from rdm.database.changes.compact import blank_ledger, compact_database, compaction_plan
from rdm.database.changes.holdings import Holdings
from rdm.database.changes.plan import Removal, SourceDiff
from rdm.database.verify.verify import verify_database
from rdm.errors import ConcurrentWriterError, DatabaseError
from rdm.storage import Folder, VersionStore

Contents = Callable[[Path], dict[str, bytes]]
GONE = Removal(frozenset(["p01.jpg", "p06.jpg"]))


def rows_of(root: Path, image_id: str) -> list[dict[str, Any]]:
    database = RetrievalDatabase.open(str(root))
    rows = database.patch_rows(np.arange(database.version.next_patch_id)).to_pylist()
    return [row for row in rows if row["image_id"] == image_id]


def test_pixels_of_deleted_photographs_leave_the_disk_and_the_others_stay(
    tabled: Any, encoded: Callable[..., bytes], contents: Contents
) -> None:
    tabled.update(GONE)
    compact_database(str(tabled.root))
    for number in range(12):
        pixels = encoded(number)[-200:]
        found = any(pixels in data for data in contents(tabled.root).values())
        assert found == (number not in (1, 6)), number


def test_vectors_of_deleted_patches_leave_the_disk(tabled: Any) -> None:
    database = RetrievalDatabase.open(str(tabled.root))
    ids = [row["patch_id"] for row in rows_of(tabled.root, "p01.jpg")]
    vectors = [database.embeddings(np.array([patch_id]))[0].tobytes() for patch_id in ids]
    tabled.update(GONE)
    compact_database(str(tabled.root))
    for path in (tabled.root / "img_emb").iterdir():
        assert not any(vector in path.read_bytes() for vector in vectors)


def test_rows_of_deleted_patches_keep_nothing_but_their_ids(tabled: Any) -> None:
    ids = [row["patch_id"] for row in rows_of(tabled.root, "p01.jpg")]
    tabled.update(GONE)
    compact_database(str(tabled.root))
    for row in RetrievalDatabase.open(str(tabled.root)).patch_rows(np.array(ids)).to_pylist():
        assert row["patch_id"] in ids
        assert {value for name, value in row.items() if name != "patch_id"} <= {"", -1, 0}


def test_ledger_says_that_a_photograph_was_deleted_and_nothing_more_of_it(tabled: Any) -> None:
    tabled.update(GONE)
    compact_database(str(tabled.root))
    version = VersionStore(Folder(tabled.root)).require()
    rows = [
        row
        for part in version.parts_of("ledger")
        for row in pq.read_table(tabled.root / part.path).to_pylist()
    ]
    deleted = [row for row in rows if row["status"] != "success"]
    assert [(row["image_id"], row["status"], row["error_message"]) for row in deleted] == [
        ("p01.jpg", "deleted", "deleted"),
        ("p06.jpg", "deleted", "deleted"),
    ]
    for row in deleted:
        assert not any(
            row[name]
            for name in ("url", "sha256", "author", "license", "landing_page", "etag", "num_bytes")
        )


def test_compaction_changes_no_answer(tabled: Any) -> None:
    tabled.update(GONE)
    before = RetrievalDatabase.open(str(tabled.root))
    queries = before.embeddings(before.living_ids())
    k = before.version.num_live_patches
    expected = [before.search_vectors(queries, k, exact=exact) for exact in (True, False)]
    table = NeighborTable(before.folder, "train").all_ids
    records, pixels = before.records(before.living_ids()), before.pixels(before.living_ids())

    compact_database(str(tabled.root))
    after = RetrievalDatabase.open(str(tabled.root))
    np.testing.assert_array_equal(after.living_ids(), before.living_ids())
    for exact, pair in zip((True, False), expected, strict=True):
        for found, array in zip(after.search_vectors(queries, k, exact=exact), pair, strict=True):
            np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(NeighborTable(after.folder, "train").all_ids, table)
    assert after.records(after.living_ids()) == records
    for found, image in zip(after.pixels(after.living_ids()), pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def test_compacted_database_is_whole(tabled: Any) -> None:
    tabled.update(GONE)
    compact_database(str(tabled.root))
    assert verify_database(str(tabled.root)) == []


def test_updates_after_a_compaction_go_on_as_without_it(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    tabled.update(GONE)
    compact_database(str(tabled.root))
    first = RetrievalDatabase.open(str(tabled.root)).version.next_patch_id
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    tabled.update()
    assert min(row["patch_id"] for row in rows_of(tabled.root, "p20.jpg")) == first
    assert verify_database(str(tabled.root)) == []
    tabled.table("again", 5, exact=True)
    found, expected = (
        NeighborTable(Folder(tabled.root), name).all_ids for name in ("train", "again")
    )
    np.testing.assert_array_equal(found, expected)


def test_photograph_that_vanished_and_was_compacted_can_come_back(tabled: Any) -> None:
    path = tabled.photos / "p05.jpg"
    path.rename(tabled.photos.parent / "aside.jpg")
    tabled.update()
    compact_database(str(tabled.root))
    (tabled.photos.parent / "aside.jpg").rename(path)
    assert update_plan(update_builder(str(tabled.root))).new == 1
    tabled.update()
    assert rows_of(tabled.root, "p05.jpg")


def test_photograph_of_a_source_without_etags_can_come_back_after_a_compaction(tabled: Any) -> None:
    (tabled.photos / "p05.jpg").unlink()
    tabled.update()
    compact_database(str(tabled.root))
    source = pa.Table.from_pylist([{"image_id": "p05.jpg", "etag": ""}])
    folder = Folder(tabled.root)
    diff = SourceDiff(Holdings(folder, VersionStore(folder).require()), source)
    assert diff.new_rows["image_id"].to_pylist() == ["p05.jpg"]


def test_photograph_that_was_removed_on_request_stays_out_after_a_compaction(tabled: Any) -> None:
    tabled.update(GONE)
    compact_database(str(tabled.root))
    assert not update_plan(update_builder(str(tabled.root))).changed


def test_photograph_with_a_living_patch_keeps_its_pixels(tabled: Any) -> None:
    first, *others = (row["patch_id"] for row in rows_of(tabled.root, "p02.jpg"))
    tabled.update(Removal(patch_ids=frozenset([first])))
    before = RetrievalDatabase.open(str(tabled.root)).photograph(others[0])
    assert compact_database(str(tabled.root)).photographs == 0
    after = RetrievalDatabase.open(str(tabled.root))
    np.testing.assert_array_equal(np.asarray(after.photograph(others[0])), np.asarray(before))
    assert not after.embeddings(np.array([first])).any()


def test_tar_stays_one_that_tar_can_read_with_statistics_beside(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    tabled.update(GONE)
    compact_database(str(tabled.root))
    with tarfile.open(tabled.root / "images" / "00000_c000005.tar") as tar:
        members = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    assert members == {f"00000000{number}.jpg": encoded(number) for number in (0, 2, 3, 4)}
    stats = Folder(tabled.root).read_json("images/00000_c000005_stats.json")
    assert (stats["successes"], stats["status_dict"]) == (4, {"success": 4, "deleted": 1})


def test_untouched_shards_keep_their_files(tabled: Any) -> None:
    tabled.update(Removal(frozenset(["p01.jpg"])))
    assert compact_database(str(tabled.root)).shards == 1
    assert Folder(tabled.root).names("images", ".tar") == [
        "00000_c000005.tar",
        "00001.tar",
        "00002.tar",
    ]


def test_names_in_use_sort_as_the_rows_do(tabled: Any) -> None:
    for image in ("p06.jpg", "p01.jpg", "p07.jpg"):
        tabled.update(Removal(frozenset([image])))
        compact_database(str(tabled.root))
    parts = [
        part.path for part in VersionStore(Folder(tabled.root)).require().parts_of("embeddings")
    ]
    assert (
        parts
        == sorted(parts)
        == [f"img_emb/{name}" for name in Folder(tabled.root).names("img_emb")]
    )


def test_older_versions_are_dropped_and_a_reader_is_told(tabled: Any) -> None:
    tabled.update(GONE)
    result = compact_database(str(tabled.root))
    assert (result.version, result.dropped_versions) == (5, [1, 2, 3, 4])
    assert VersionStore(Folder(tabled.root)).numbers() == [5]
    with pytest.raises(DatabaseError, match="no version 4: a compaction dropped it"):
        RetrievalDatabase.open(str(tabled.root), version=4)


def test_plan_tells_what_would_go_and_writes_nothing(tabled: Any, contents: Contents) -> None:
    tabled.update(GONE)
    patches = len(RetrievalDatabase.open(str(tabled.root)).tombstones)
    before = contents(tabled.root)
    plan = compaction_plan(str(tabled.root))
    assert (plan.photographs, plan.patches, plan.shards) == (2, patches, 2)
    assert contents(tabled.root) == before


def test_second_compaction_finds_nothing_to_do(tabled: Any, contents: Contents) -> None:
    tabled.update(GONE)
    compact_database(str(tabled.root))
    before = contents(tabled.root)
    result = compact_database(str(tabled.root))
    assert (result.patches, result.freed_bytes, result.version) == (0, 0, 5)
    assert contents(tabled.root) == before


def test_what_an_abandoned_update_left_is_removed(tabled: Any) -> None:
    stray = tabled.root / "images" / "00007.tar"
    stray.write_bytes(b"pixels")
    assert compaction_plan(str(tabled.root)).freed_bytes >= 6
    compact_database(str(tabled.root))
    assert not stray.exists()


def test_what_an_abandoned_update_fetched_is_removed(tabled: Any) -> None:
    for stray in ("fetch/00007-0/shelf/000000", "removed/0.json"):
        (tabled.root / "_markers" / stray).parent.mkdir(parents=True)
        (tabled.root / "_markers" / stray).write_bytes(b"pixels")
    assert compaction_plan(str(tabled.root)).freed_bytes >= 12
    compact_database(str(tabled.root))
    assert not (tabled.root / "_markers" / "fetch").exists()
    assert not (tabled.root / "_markers" / "removed").exists()


def test_compaction_beside_another_writer_is_refused(tabled: Any) -> None:
    with VersionStore(Folder(tabled.root)).writer(), pytest.raises(ConcurrentWriterError):
        compact_database(str(tabled.root))


def test_folder_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    for function in (compact_database, compaction_plan):
        with pytest.raises(DatabaseError, match="not a retrieval database"):
            function(str(tmp_path))


def test_every_column_but_the_kept_ones_is_emptied() -> None:
    before = {"key": "0", "image_id": "a", "phash": "f0", "status": "success", "error_message": ""}
    ledger = pa.Table.from_pylist([{**before, "camera": "X", "etag": "1"}])
    assert blank_ledger(ledger, np.array([0])).to_pylist() == [
        {**before, "status": "deleted", "error_message": "deleted", "camera": None, "etag": ""}
    ]
