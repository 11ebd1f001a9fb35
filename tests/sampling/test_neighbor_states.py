from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from written_recipe import neighbor, recipe

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.sampling import Model, SampleSettings, sample, text_queries
from rdm.sampling.neighbor_states import named_databases, neighbor_states
from rdm.sampling.recipe.record import DatabaseReference, SampleRecord
from rdm.sampling.recorder import Recorder, database_reference
from rdm.sources import CropConfig

INLINE = ComputeConfig(dask="inline")
SETTINGS = SampleSettings(k=3, num_steps=1, batch_size=1)


@pytest.fixture
def root(database: RetrievalDatabase, tmp_path: Path) -> Path:
    """A copy of the database that a test may change."""
    shutil.copytree(database.folder.url, tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture(scope="module")
def record(model: Model, database: RetrievalDatabase) -> SampleRecord:
    drawn = list(sample(model, database, text_queries(database, ["a"], 3), [0], SETTINGS))
    return Recorder(model, {"": database}, SETTINGS).records(drawn, ["a.png"])[0]


def states(record: SampleRecord, *roots: Path) -> list[str]:
    opened = [RetrievalDatabase.open(str(root)) for root in roots]
    return [one.state for one in neighbor_states(record, opened)]


def test_neighbors_of_a_database_that_is_as_it_was_are_there(
    record: SampleRecord, root: Path
) -> None:
    assert states(record, root) == ["there"] * 3


def test_without_its_database_nothing_is_known(record: SampleRecord) -> None:
    assert states(record) == ["unknown"] * 3


@pytest.mark.parametrize("compacted", [False, True])
def test_a_photograph_that_was_removed_on_request_is_removed(
    record: SampleRecord, root: Path, compacted: bool
) -> None:
    gone = record.neighbors[1].image_id
    run_build(update_builder(str(root), removal=Removal(frozenset([gone]))), INLINE)
    if compacted:
        compact_database(str(root))
    expected = ["removed" if one.image_id == gone else "there" for one in record.neighbors]
    assert set(expected) == {"removed", "there"}
    assert states(record, root) == expected


def test_a_single_patch_that_was_removed_on_request_is_removed(
    record: SampleRecord, root: Path
) -> None:
    removal = Removal(patch_ids=frozenset([record.neighbors[2].patch_id]))
    run_build(update_builder(str(root), removal), INLINE)
    assert states(record, root) == ["there", "there", "removed"]


def test_a_patch_whose_photograph_left_its_source_is_deleted(
    tmp_path: Path, encoded: Callable[..., bytes], tiny_encoder: str
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(20):
        (tmp_path / "photos" / f"{number:02d}.jpg").write_bytes(encoded(number))
    crop = CropConfig(frame_size=40, patch_size=32)
    config = BuildConfig(source=f"folder://{tmp_path}/photos", encoder=tiny_encoder, crop=crop)
    run_build(DatabaseBuilder(str(tmp_path / "db"), config), INLINE)
    opened = RetrievalDatabase.open(str(tmp_path / "db"))
    credits = [
        neighbor(one.patch_id, database="db", image_id=one.image_id, sha256=one.sha256, box=one.box)
        for one in opened.records(np.arange(2))
    ]
    some = recipe(0, neighbors=credits, databases=[database_reference(opened)])

    (tmp_path / "photos" / some.neighbors[0].image_id).unlink()
    run_build(update_builder(str(tmp_path / "db")), INLINE)
    before, after = states(some, tmp_path / "db")
    assert (before, after) == (
        "deleted",
        "deleted" if some.neighbors[1].image_id == some.neighbors[0].image_id else "there",
    )


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"patch_id": 10_000}, "missing"),
        ({"sha256": "0" * 64}, "another"),
        ({"box": (0, 0, 1, 1)}, "another"),
        ({"image_id": "other.jpg"}, "another"),
    ],
)
def test_a_patch_that_is_not_the_one_of_the_recipe_is_told_apart(
    record: SampleRecord, root: Path, change: dict[str, object], state: str
) -> None:
    first, *others = record.neighbors
    changed = record.model_copy(update={"neighbors": (first.model_copy(update=change), *others)})
    assert states(changed, root) == [state, "there", "there"]


def test_one_database_serves_under_any_name(record: SampleRecord, root: Path) -> None:
    root.rename(root.parent / "moved")
    assert states(record, root.parent / "moved") == ["there"] * 3


def test_of_several_databases_each_answers_for_its_own(root: Path) -> None:
    opened = RetrievalDatabase.open(str(root))
    references = [
        DatabaseReference(name="other", version=1, digest="0" * 16),
        DatabaseReference(name="birds", version=1, digest=database_reference(opened).digest),
        DatabaseReference(name="db", version=9, digest="1" * 16),
    ]
    assert list(named_databases(references, [opened])) == ["birds", "db"]
    assert named_databases(references[:1], [opened, opened]) == {}
