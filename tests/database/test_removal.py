from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from PIL import Image

from rdm.compute import ComputeConfig
from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder, update_plan
from rdm.database.building.results import BuildResult
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database
from rdm.errors import DatabaseError, UsageError
from rdm.sources.photographs.filters import FilterConfig
from rdm.storage import Folder


def images_of(root: Any) -> set[str]:
    database = RetrievalDatabase.open(str(root))
    return set(database.patch_rows(database.living_ids())["image_id"].to_pylist())


def patches_of(root: Any, image_id: str) -> list[int]:
    database = RetrievalDatabase.open(str(root))
    rows = database.patch_rows(database.living_ids()).to_pylist()
    return [row["patch_id"] for row in rows if row["image_id"] == image_id]


ALL = {f"p{number:02d}.jpg" for number in range(12)}


def test_condition_deletes_the_images_that_fulfill_it(tabled: Any) -> None:
    tabled.update(Removal(where="image_id == 'p02.jpg' or image_id in ['p05.jpg', 'nothing.jpg']"))
    assert images_of(tabled.root) == ALL - {"p02.jpg", "p05.jpg"}


def test_condition_on_numbers(tabled: Any, encoded: Any) -> None:
    (tabled.photos / "p20.jpg").write_bytes(encoded(20, size=(96, 80)))
    tabled.update()
    tabled.update(Removal(where="width > 48"))
    assert images_of(tabled.root) == ALL


def test_image_that_a_condition_deleted_does_not_come_back(tabled: Any) -> None:
    tabled.update(Removal(where="image_id == 'p02.jpg'"))
    assert not update_plan(update_builder(str(tabled.root))).changed


def test_condition_that_nothing_fulfills_changes_nothing(tabled: Any) -> None:
    nobodys = Removal(where="author == 'Nobody'")
    assert not update_plan(update_builder(str(tabled.root), nobodys)).changed


def test_condition_looks_at_the_newest_row_of_a_replaced_image(tabled: Any, encoded: Any) -> None:
    (tabled.photos / "p03.jpg").write_bytes(encoded(33, size=(96, 80)))
    tabled.update()
    assert update_plan(update_builder(str(tabled.root), Removal(where="width == 48"))).gone == 11


def test_unknown_column_is_an_error_that_lists_the_columns(tabled: Any) -> None:
    with pytest.raises(UsageError, match="no column 'licence'") as caught:
        update_plan(update_builder(str(tabled.root), Removal(where="licence == 'x'")))
    assert {"license", "author", "landing_page", "width"} <= set(
        caught.value.fix.removeprefix("columns: ").split(", ")
    )


def test_plan_counts_images_and_patches_that_would_go(tabled: Any) -> None:
    patches = patches_of(tabled.root, "p02.jpg")
    plan = update_plan(update_builder(str(tabled.root), Removal(frozenset(["p02.jpg"]))))
    assert (plan.gone, plan.gone_patches, plan.photographs) == (1, len(patches), 11)


def test_single_patch_goes_and_its_siblings_stay(tabled: Any) -> None:
    first, *others = patches_of(tabled.root, "p02.jpg")
    tabled.update(Removal(patch_ids=frozenset([first])))
    assert patches_of(tabled.root, "p02.jpg") == others
    assert RetrievalDatabase.open(str(tabled.root)).tombstones.tolist() == [first]


def test_image_goes_with_its_last_patch_and_does_not_come_back(tabled: Any) -> None:
    first, *others = patches_of(tabled.root, "p02.jpg")
    tabled.update(Removal(patch_ids=frozenset([first])))
    tabled.update(Removal(patch_ids=frozenset(others)))
    assert images_of(tabled.root) == ALL - {"p02.jpg"}
    assert RetrievalDatabase.open(str(tabled.root)).version.deleted_image_ids == ["p02.jpg"]
    assert not update_plan(update_builder(str(tabled.root))).changed


def test_patch_that_is_deleted_already_changes_nothing(tabled: Any) -> None:
    removal = Removal(patch_ids=frozenset(patches_of(tabled.root, "p02.jpg")[:1]))
    tabled.update(removal)
    assert not update_plan(update_builder(str(tabled.root), removal)).changed


@pytest.mark.parametrize("patch_id", [-1, 10_000, 2**70])
def test_unknown_patch_is_an_error(tabled: Any, patch_id: int) -> None:
    with pytest.raises(DatabaseError, match=f"has no patch {patch_id}"):
        update_builder(str(tabled.root), Removal(patch_ids=frozenset([patch_id])))


def test_deleted_patch_can_be_attributed_and_shown_no_more(tabled: Any) -> None:
    gone = patches_of(tabled.root, "p02.jpg")[0]
    tabled.update(Removal(frozenset(["p02.jpg"])))
    database = RetrievalDatabase.open(str(tabled.root))
    for lookup in (database.records, database.pixels, lambda ids: database.photograph(int(ids[0]))):
        with pytest.raises(DatabaseError, match=f"patch {gone} was deleted"):
            lookup(np.array([gone]))


def only_delete(root: Any, *image_ids: str) -> BuildResult:
    builder = update_builder(str(root), Removal(frozenset(image_ids)), only_delete=True)
    return run_build(builder, ComputeConfig(dask="inline"))


def test_removal_alone_needs_no_source_and_what_is_new_there_waits(
    tabled: Any, encoded: Any
) -> None:
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    (tabled.photos / "p03.jpg").unlink()
    aside = tabled.photos.rename(tabled.photos.with_name("unplugged"))
    only_delete(tabled.root, "p02.jpg")
    aside.rename(tabled.photos)
    assert images_of(tabled.root) == ALL - {"p02.jpg"}
    tabled.update()
    assert images_of(tabled.root) == (ALL | {"p20.jpg"}) - {"p02.jpg", "p03.jpg"}


def test_removal_alone_repairs_the_neighbors(tabled: Any) -> None:
    only_delete(tabled.root, "p02.jpg", "p05.jpg")
    tabled.table("again", 5, exact=True)
    found, expected = (
        NeighborTable(Folder(tabled.root), name).all_ids for name in ("train", "again")
    )
    np.testing.assert_array_equal(found, expected)
    assert verify_database(str(tabled.root)) == []


def test_removal_alone_keeps_near_duplicates_out(
    photos: Any, tmp_path: Any, build: Any, encoded: Any
) -> None:
    (photos / "p20.jpg").write_bytes(encoded(4))
    build(tmp_path / "db", photos, filters=FilterConfig(near_duplicate_bits=4))
    only_delete(tmp_path / "db", "p02.jpg")
    assert RetrievalDatabase.open(str(tmp_path / "db")).status().near_duplicates == 1
    assert not update_plan(update_builder(str(tmp_path / "db"))).changed


def test_removal_alone_knows_photographs_that_have_no_patch(
    photos: Any, tmp_path: Path, build: Any
) -> None:
    for name, side in (("blank.jpg", 48), ("copy.jpg", 96)):
        Image.new("RGB", (side, side), "gray").save(photos / name)
    root = tmp_path / "db"
    build(root, photos, filters=FilterConfig(near_duplicate_bits=4, min_contrast=3))
    builder = update_builder(str(root), Removal(frozenset(["p02.jpg"])), only_delete=True)
    facts = builder.plan().facts()
    assert (facts.new, facts.photographs) == (0, 13)
    run_build(builder, ComputeConfig(dask="inline"))
    assert RetrievalDatabase.open(str(root)).status().near_duplicates == 1
    assert not update_plan(update_builder(str(root))).changed


def test_retrying_and_leaving_the_source_alone_exclude_each_other(tabled: Any) -> None:
    with pytest.raises(UsageError, match="give one of them|leaves it alone"):
        update_builder(str(tabled.root), retry_failed=True, only_delete=True)


@pytest.mark.parametrize("compacted", [False, True])
def test_index_that_other_tools_read_holds_no_deleted_patch(tabled: Any, compacted: bool) -> None:
    tabled.update(Removal(frozenset(["p02.jpg"])))
    if compacted:
        compact_database(str(tabled.root))
    database = RetrievalDatabase.open(str(tabled.root))
    for path in ("image.index", "index/knn.index"):
        index = faiss.read_index(str(tabled.root / path))
        found = index.search(
            np.asarray(database.embeddings(database.living_ids()[:3]), np.float32), 10_000
        )[1]
        assert set(found[found >= 0].tolist()) <= set(database.living_ids().tolist())
        assert index.ntotal == len(database.living_ids())
