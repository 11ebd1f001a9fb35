from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rdm.database import RetrievalDatabase
from rdm.database.changes import Removal
from rdm.database.jobs import update_builder, update_plan
from rdm.errors import DatabaseError, UsageError


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
    assert not update_plan(update_builder(str(tabled.root)))["changed"]


def test_condition_that_nothing_fulfills_changes_nothing(tabled: Any) -> None:
    assert not update_plan(update_builder(str(tabled.root), Removal(where="author == 'Nobody'")))["changed"]


def test_condition_looks_at_the_newest_row_of_a_replaced_image(tabled: Any, encoded: Any) -> None:
    (tabled.photos / "p03.jpg").write_bytes(encoded(33, size=(96, 80)))
    tabled.update()
    assert update_plan(update_builder(str(tabled.root), Removal(where="width == 48")))["gone"] == 11


def test_unknown_column_is_an_error_that_lists_the_columns(tabled: Any) -> None:
    with pytest.raises(UsageError, match="no column 'licence'") as caught:
        update_plan(update_builder(str(tabled.root), Removal(where="licence == 'x'")))
    assert {"license", "author", "landing_page", "width"} <= set(caught.value.fix.removeprefix("columns: ").split(", "))


def test_plan_counts_images_and_patches_that_would_go(tabled: Any) -> None:
    patches = patches_of(tabled.root, "p02.jpg")
    plan = update_plan(update_builder(str(tabled.root), Removal(frozenset(["p02.jpg"]))))
    assert (plan["gone"], plan["gone_patches"], plan["photographs"]) == (1, len(patches), 11)


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
    assert not update_plan(update_builder(str(tabled.root)))["changed"]


def test_patch_that_is_deleted_already_changes_nothing(tabled: Any) -> None:
    removal = Removal(patch_ids=frozenset(patches_of(tabled.root, "p02.jpg")[:1]))
    tabled.update(removal)
    assert not update_plan(update_builder(str(tabled.root), removal))["changed"]


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
