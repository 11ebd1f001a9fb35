from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rdm.database.changes.holdings import Holdings
from rdm.database.changes.plan import Removal, SourceDiff, UpdatePlan
from rdm.database.reader import RetrievalDatabase


def listing(**etags: str) -> pa.Table:
    rows = [
        {"image_id": f"{name}.jpg", "location": name, "etag": etag} for name, etag in etags.items()
    ]
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def held(database: RetrievalDatabase) -> Holdings:
    """The photographs p00.jpg to p11.jpg, of a database that no test changes."""
    return Holdings(database.folder, database.version)


def patches_of(held: Holdings, image_id: str) -> list[int]:
    rows = held.patches.to_pylist()
    return [row["patch_id"] for row in rows if row["image_id"] == image_id]


def replaced(held: Holdings, *image_ids: str) -> SourceDiff:
    """The source of a database in which some photographs have other bytes."""
    etags = {name: row.etag for name, row in held.last_rows.items()} | dict.fromkeys(
        image_ids, "other"
    )
    rows = [
        {"image_id": name, "location": name, "etag": etag} for name, etag in sorted(etags.items())
    ]
    return SourceDiff(held, pa.Table.from_pylist(rows))


def test_of_no_version_everything_is_new(database: RetrievalDatabase) -> None:
    plan = UpdatePlan(SourceDiff(Holdings(database.folder, None), listing(a="1", b="2")))
    assert plan.diff.new_etags == {"a.jpg": "1", "b.jpg": "2"}
    assert (len(plan.tombstones), plan.is_empty) == (0, False)


def test_source_without_a_listing_changes_nothing(held: Holdings) -> None:
    plan = UpdatePlan(SourceDiff(held, None))
    assert plan.diff.source.num_rows == 12
    assert plan.is_empty


def test_replaced_photograph_is_new_and_its_patches_go(held: Holdings) -> None:
    plan = UpdatePlan(replaced(held, "p03.jpg"))
    assert plan.diff.new_etags == {"p03.jpg": "other"}
    assert plan.newly_dead.tolist() == patches_of(held, "p03.jpg")


def test_photograph_that_could_not_be_had_keeps_its_patches_in_another_plan(held: Holdings) -> None:
    before = UpdatePlan(replaced(held, "p03.jpg", "p04.jpg"))
    dead = before.newly_dead
    after = before.after_ingest({"p03.jpg"})
    assert after.newly_dead.tolist() == patches_of(held, "p04.jpg")
    assert (
        dict(zip(*(after.taken[name].to_pylist() for name in ("image_id", "etag")), strict=True))[
            "p03.jpg"
        ]
        != "other"
    )
    assert before.kept == frozenset()
    np.testing.assert_array_equal(before.newly_dead, dead)


def test_near_duplicates_go_in_another_plan(held: Holdings) -> None:
    before = UpdatePlan(replaced(held))
    after = before.after_comparison({"p05.jpg"})
    assert after.tombstones.tolist() == patches_of(held, "p05.jpg")
    assert (len(before.tombstones), before.is_empty) == (0, True)


def test_removal_of_all_patches_of_a_photograph_removes_it(held: Holdings) -> None:
    patches = frozenset(patches_of(held, "p06.jpg"))
    diff = SourceDiff(held, None, Removal(patch_ids=patches))
    assert (diff.removed_images, diff.removed_patches) == (frozenset({"p06.jpg"}), {})
    assert UpdatePlan(diff).gone_images == frozenset({"p06.jpg"})
