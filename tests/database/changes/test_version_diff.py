"""What changed between two versions, by cause, told from the versions alone; and what was not
announced yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.building.results import BuildResult
from rdm.database.changes.announcements import ANNOUNCED, announce, ensure_announced, news
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.changes.version_diff import describe_changes
from rdm.database.contract import CHANGES_PAGE
from rdm.errors import DatabaseError, StorageError, UsageError
from rdm.storage import Folder, VersionStore


def patches_of(root: Path, *image_ids: str) -> list[int]:
    database = RetrievalDatabase.open(str(root))
    rows = database.patch_rows(database.living_ids()).to_pylist()
    return [row["patch_id"] for row in rows if row["image_id"] in image_ids]


def test_added_and_removed_are_told_by_cause(tabled: Any, encoded: Callable[..., bytes]) -> None:
    first, single = patches_of(tabled.root, "p00.jpg"), patches_of(tabled.root, "p05.jpg")[0]
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    (tabled.photos / "p21.jpg").write_bytes(b"no picture at all")
    (tabled.photos / "p03.jpg").write_bytes(encoded(33))
    (tabled.photos / "p07.jpg").unlink()
    tabled.update(Removal(frozenset(["p00.jpg"]), frozenset([single])))
    changes = describe_changes(Folder(tabled.root))
    assert (changes.since, changes.version, changes.num_new_photographs) == (3, 4, 1)
    assert sorted(changes.added["patch_id"].to_pylist()) == patches_of(
        tabled.root, "p20.jpg", "p03.jpg"
    )
    assert changes.removed_photographs == {
        "removed on request": 1,
        "replaced in the source": 1,
        "vanished from the source": 1,
        "single patch removed on request": 1,
    }
    assert [
        patch.patch_id for patch in changes.removed if patch.cause == "removed on request"
    ] == first
    assert (
        sorted(patch.patch_id for patch in changes.removed)
        == RetrievalDatabase.open(str(tabled.root)).tombstones.tolist()
    )
    assert changes.failures == {"not a picture": 1}


def test_near_duplicates_that_go_have_a_cause_of_their_own(
    tmp_path: Path,
    photos: Path,
    build: Callable[..., BuildResult],
    encoded: Callable[..., bytes],
) -> None:
    from rdm.sources.photographs.filters import FilterConfig

    config = {"filters": FilterConfig(near_duplicate_bits=4)}
    build(tmp_path / "db", photos, **config)
    (photos / "a00.jpg").write_bytes(encoded(4))
    build(tmp_path / "db", photos, **config)
    changes = describe_changes(Folder(tmp_path / "db"))
    assert changes.removed_photographs == {"looks like another photograph": 1}
    assert {patch.image_id for patch in changes.removed} == {"p04.jpg"}


def test_index_decision_and_recall_before_and_after_are_told(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    before = VersionStore(Folder(tabled.root)).require().index
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    tabled.update()
    index, after = (
        describe_changes(Folder(tabled.root)).index,
        VersionStore(Folder(tabled.root)).require().index,
    )
    assert (index.action, index.reason) == (
        after.decision.action,
        after.decision.reason,
    )
    assert (index.recall_before, index.recall_after) == (
        before.recall_at_20,
        after.recall_at_20,
    )
    assert (index.num_vectors_before, index.num_vectors_after) == (
        before.num_vectors,
        after.num_vectors,
    )


def test_touched_rows_of_each_table_are_counted(tabled: Any) -> None:
    folder = Folder(tabled.root)
    before = {name: NeighborTable(folder, name).all_ids for name in ("train", "fast")}
    tabled.update(Removal(frozenset(["p02.jpg"])))
    changes = describe_changes(folder)
    for table in changes.tables:
        differing = (NeighborTable(folder, table.name).all_ids != before[table.name]).any(axis=1)
        assert (table.touched_rows, table.num_rows) == (differing.sum(), len(differing))
        assert table.touched_rows > 0


def test_new_table_is_no_change_of_patches_and_its_rows_are_not_touched(tabled: Any) -> None:
    changes = describe_changes(Folder(tabled.root))
    assert (changes.added.num_rows, changes.removed, changes.index.action) == (0, (), "kept")
    assert [(table.name, table.touched_rows) for table in changes.tables] == [
        ("fast", 0),
        ("train", 0),
    ]


def test_first_version_added_everything(tabled: Any) -> None:
    changes = describe_changes(Folder(tabled.root), version=1)
    assert (changes.since, changes.num_new_photographs, changes.index.recall_before) == (
        0,
        12,
        None,
    )


def test_several_versions_are_compared_at_once(tabled: Any, encoded: Callable[..., bytes]) -> None:
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    tabled.update()
    gone = patches_of(tabled.root, "p01.jpg")
    tabled.update(Removal(frozenset(["p01.jpg", "p20.jpg"])))
    changes = describe_changes(Folder(tabled.root), since=3)
    assert changes.added.num_rows == 0  # it came and went again
    assert [patch.patch_id for patch in changes.removed] == gone


def test_versions_in_the_wrong_order_are_refused(tabled: Any) -> None:
    with pytest.raises(UsageError, match="version 3 is newer than version 2"):
        describe_changes(Folder(tabled.root), since=3, version=2)


def test_version_that_a_compaction_dropped_cannot_be_compared(tabled: Any) -> None:
    tabled.update(Removal(frozenset(["p01.jpg"])))
    compact_database(str(tabled.root))
    with pytest.raises(DatabaseError, match="no version 4: a compaction dropped it"):
        describe_changes(Folder(tabled.root))


def test_update_deletes_the_page_that_may_show_what_it_removes(tabled: Any) -> None:
    (tabled.root / CHANGES_PAGE).write_text("pixels")
    tabled.update(Removal(frozenset(["p01.jpg"])))
    assert not (tabled.root / CHANGES_PAGE).exists()


def test_news_are_what_came_and_went_since_the_last_announcement(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    folder = Folder(tabled.root)
    ensure_announced(folder)
    assert news(folder) is None
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    gone = patches_of(tabled.root, "p01.jpg")
    tabled.update(Removal(frozenset(["p01.jpg"])))
    ensure_announced(folder)  # a run that follows one that was killed before it could tell
    found = news(folder)
    assert found is not None
    new = describe_changes(folder).added.num_rows
    assert (found.since, found.version, found.patches_added, found.patches_removed) == (
        3,
        4,
        new,
        len(gone),
    )
    announce(folder)
    assert news(folder) is None


def test_new_neighbor_tables_and_compactions_are_no_news(tabled: Any) -> None:
    tabled.update(Removal(frozenset(["p01.jpg"])))
    announce(Folder(tabled.root))
    tabled.table("again", 4, exact=True)
    compact_database(str(tabled.root))
    assert news(Folder(tabled.root)) is None


def test_news_outlive_a_compaction_that_drops_the_version_before(tabled: Any) -> None:
    ensure_announced(Folder(tabled.root))
    tabled.update(Removal(frozenset(["p01.jpg"])))
    compact_database(str(tabled.root))
    found = news(Folder(tabled.root))
    assert found is not None
    deleted = len(VersionStore(Folder(tabled.root)).require().tombstones)
    assert (found.since, found.patches_added, found.patches_removed) == (0, 0, deleted)


def test_nothing_is_news_of_a_database_that_was_never_announced(tabled: Any) -> None:
    assert news(Folder(tabled.root)) is None


def test_damaged_note_is_named(tabled: Any) -> None:
    Folder(tabled.root).write_json(ANNOUNCED, {"version": "x"})
    with pytest.raises(StorageError, match="announced is damaged"):
        news(Folder(tabled.root))
