"""What was removed on request does not come back: as the same file touched, renamed, copied, or
after a compaction."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder, update_plan
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database
from rdm.encoders import load_encoder, registry
from rdm.errors import UsageError
from rdm.storage import Folder, VersionStore

GONE = Removal(frozenset(["p02.jpg"]))


def patches_of(root: Path, image_id: str) -> list[tuple[int, tuple[int, ...]]]:
    database = RetrievalDatabase.open(str(root))
    return [
        (row.patch_id, row.box)
        for row in database.records(database.living_ids())
        if row.image_id == image_id
    ]


def images_of(root: Path) -> set[str]:
    database = RetrievalDatabase.open(str(root))
    return {row.image_id for row in database.records(database.living_ids())}


def ledger_rows(root: Path, image_id: str) -> list[tuple[str, str]]:
    parts = VersionStore(Folder(root)).require().parts_of("ledger")
    rows = [row for part in parts for row in pq.read_table(root / part.path).to_pylist()]
    return [(row["status"], row["error_message"]) for row in rows if row["image_id"] == image_id]


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("compacted", [False, True])
def test_patch_is_not_cut_again_from_a_file_that_was_touched(tabled: Any, compacted: bool) -> None:
    (first, box), *others = patches_of(tabled.root, "p02.jpg")
    tabled.update(Removal(patch_ids=frozenset([first])))
    if compacted:
        compact_database(str(tabled.root))
    touch(tabled.photos / "p02.jpg")
    tabled.update()
    assert [found for _, found in patches_of(tabled.root, "p02.jpg")] == [
        kept for _, kept in others
    ]
    assert VersionStore(Folder(tabled.root)).require().deleted_patches == {"p02.jpg": [box]}
    assert verify_database(str(tabled.root)) == []


def test_patch_is_not_cut_again_by_the_update_that_removes_it(tabled: Any) -> None:
    (first, _), *others = patches_of(tabled.root, "p02.jpg")
    touch(tabled.photos / "p02.jpg")
    tabled.update(Removal(patch_ids=frozenset([first])))
    assert [box for _, box in patches_of(tabled.root, "p02.jpg")] == [box for _, box in others]


def test_patch_that_is_left_out_has_its_reason(tabled: Any) -> None:
    tabled.update(Removal(patch_ids=frozenset([patches_of(tabled.root, "p02.jpg")[0][0]])))
    touch(tabled.photos / "p02.jpg")
    tabled.update()
    assert RetrievalDatabase.open(str(tabled.root)).status().dropped_patches == {
        "removed on request": 1
    }


@pytest.mark.parametrize("where", ["", "image_id == 'p02.jpg'"])
@pytest.mark.parametrize("compacted", [False, True])
def test_photograph_does_not_come_back_under_another_name(
    tabled: Any, where: str, compacted: bool
) -> None:
    tabled.update(Removal(where=where) if where else GONE)
    if compacted:
        compact_database(str(tabled.root))
    (tabled.photos / "p02.jpg").rename(tabled.photos / "renamed.jpg")
    tabled.update()
    assert "renamed.jpg" not in images_of(tabled.root)
    assert ledger_rows(tabled.root, "renamed.jpg") == [("skipped", "removed on request")]
    assert not update_plan(update_builder(str(tabled.root))).changed


def test_pixels_of_a_refused_photograph_are_not_stored(
    tabled: Any, encoded: Any, contents: Any
) -> None:
    tabled.update(GONE)
    compact_database(str(tabled.root))
    shutil.copy(tabled.photos / "p02.jpg", tabled.photos / "copy.jpg")
    tabled.update()
    assert not any(encoded(2)[-200:] in data for data in contents(tabled.root).values())


def test_photograph_all_of_whose_patches_went_does_not_come_back_under_another_name(
    tabled: Any,
) -> None:
    tabled.update(
        Removal(patch_ids=frozenset(number for number, _ in patches_of(tabled.root, "p02.jpg")))
    )
    (tabled.photos / "p02.jpg").rename(tabled.photos / "renamed.jpg")
    tabled.update()
    assert "renamed.jpg" not in images_of(tabled.root)


def test_copy_that_is_in_the_database_goes_too(tabled: Any) -> None:
    shutil.copy(tabled.photos / "p02.jpg", tabled.photos / "copy.jpg")
    tabled.update()
    tabled.update(GONE)
    assert not {"p02.jpg", "copy.jpg"} & images_of(tabled.root)
    assert RetrievalDatabase.open(str(tabled.root)).version.deleted_image_ids == [
        "copy.jpg",
        "p02.jpg",
    ]


def test_photograph_that_had_the_bytes_once_stays(tabled: Any, encoded: Any) -> None:
    shutil.copy(tabled.photos / "p02.jpg", tabled.photos / "p03.jpg")
    tabled.update()
    (tabled.photos / "p03.jpg").write_bytes(encoded(33))
    tabled.update()
    tabled.update(GONE)
    assert "p03.jpg" in images_of(tabled.root)


def test_copy_is_refused_by_the_update_that_removes_the_photograph(tabled: Any) -> None:
    shutil.copy(tabled.photos / "p02.jpg", tabled.photos / "copy.jpg")
    tabled.update(GONE)
    assert not {"p02.jpg", "copy.jpg"} & images_of(tabled.root)


def test_lists_for_the_workers_are_gone_after_an_update(tabled: Any, encoded: Any) -> None:
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    tabled.update(GONE)
    assert not (tabled.root / "_markers" / "removed").exists()


def test_removal_needs_no_encoder(
    tmp_path: Path, photos: Path, build: Any, make_encoder: Any
) -> None:
    encoder = make_encoder(17)
    build(tmp_path / "db", photos, encoder=encoder)
    Path(encoder.removeprefix("open_clip:tiny-clip/")).unlink()
    registry._load.cache_clear()  # as in another process
    with pytest.raises(UsageError, match="checkpoint does not exist"):
        load_encoder(encoder)
    builder = update_builder(str(tmp_path / "db"), GONE, only_delete=True)
    assert run_build(builder, ComputeConfig(dask="inline")).photographs == 11
