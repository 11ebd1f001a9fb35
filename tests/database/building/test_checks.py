from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.compute import ComputeConfig
from rdm.database.building.jobs import run_build, update_builder, update_plan
from rdm.database.changes.plan import Removal
from rdm.errors import DatabaseError, SourceError
from rdm.sources import CropConfig
from rdm.sources.photographs.boxes import BoxConfig


def lose(root: Path, count: int) -> None:
    for path in sorted((root.parent / "photos").iterdir())[:count]:
        path.unlink()


def test_source_that_lost_most_photographs_is_refused_by_plan_and_update(living_root: Path) -> None:
    lose(living_root, 11)
    for run in (update_plan, lambda builder: run_build(builder, ComputeConfig(dask="inline"))):
        with pytest.raises(
            SourceError, match="11 of the 12 photographs in the database are no longer"
        ) as caught:
            run(update_builder(str(living_root)))
        assert "--set max_vanished_share=1" in caught.value.fix


def test_losing_most_photographs_can_be_meant_and_is_asked_each_time(living_root: Path) -> None:
    lose(living_root, 10)
    builder = update_builder(str(living_root), overrides=["max_vanished_share=1"])
    assert run_build(builder, ComputeConfig(dask="inline")).photographs == 2
    assert update_builder(str(living_root)).config.max_vanished_share == 0.5


def test_few_photographs_may_all_vanish_beside_new_ones(living_root: Path) -> None:
    lose(living_root, 9)
    assert update_plan(update_builder(str(living_root))).gone == 9


def test_photographs_removed_on_request_have_not_vanished(living_root: Path) -> None:
    asked = Removal(frozenset(f"p{number:02d}.jpg" for number in range(2)))
    lose(living_root, 11)
    assert update_plan(update_builder(str(living_root), asked)).gone == 11


def test_half_of_the_photographs_may_vanish(
    root: Path, build: Any, encoded: Callable[..., bytes]
) -> None:
    for number in range(12, 20):
        (root.parent / "photos" / f"p{number}.jpg").write_bytes(encoded(number))
    build(root, root.parent / "photos")
    lose(root, 10)
    assert update_plan(update_builder(str(root))).gone == 10


def test_removal_of_everything_is_refused_by_the_plan(living_root: Path) -> None:
    with pytest.raises(DatabaseError, match="no patch would be left"):
        update_plan(update_builder(str(living_root), Removal(where="width > 0")))


@pytest.fixture
def boxes(root: Path, build: Any) -> Path:
    """The table of boxes, one for each of twelve photographs, of the database at `root`."""
    path = root.parent / "boxes.csv"
    rows = [f"p{number:02d}.jpg,0,1,0,1\n" for number in range(12)]
    path.write_text("ImageID,XMin,XMax,YMin,YMax\n" + "".join(rows))
    build(
        root, root.parent / "photos", crop=CropConfig(mode="boxes"), boxes=BoxConfig(path=str(path))
    )
    return path


def drop_rows(path: Path, count: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-count]))


def test_few_rows_of_a_list_may_go_and_the_plan_names_them(root: Path, boxes: Path) -> None:
    drop_rows(boxes, 3)
    plan = update_plan(update_builder(str(root)))
    assert (plan.gone, plan.delisted) == (3, 3)
    assert plan.first_delisted == ["p09.jpg", "p10.jpg", "p11.jpg"]
    assert run_build(update_builder(str(root)), ComputeConfig(dask="inline")).photographs == 9


def test_list_that_lost_more_than_a_few_rows_is_refused_by_plan_and_update(
    root: Path, boxes: Path
) -> None:
    drop_rows(boxes, 4)
    for run in (update_plan, lambda builder: run_build(builder, ComputeConfig(dask="inline"))):
        with pytest.raises(SourceError) as caught:
            run(update_builder(str(root)))
        assert (
            "4 of the 12 photographs in the database are in no row of the list any more, "
            "which has 8" in str(caught.value)
        )
        assert "p08.jpg, p09.jpg, p10.jpg and 1 more" in caught.value.what
        assert caught.value.where == str(boxes)
        assert "--set max_delisted_share=1" in caught.value.fix


def test_lost_rows_of_a_list_can_be_meant_and_are_asked_about_each_time(
    root: Path, boxes: Path
) -> None:
    drop_rows(boxes, 7)
    with pytest.raises(SourceError, match="7 of the 12"):
        update_plan(update_builder(str(root), overrides=["max_delisted_share=0.5"]))
    builder = update_builder(str(root), overrides=["max_delisted_share=0.6"])
    assert run_build(builder, ComputeConfig(dask="inline")).photographs == 5
    assert update_builder(str(root)).config.max_delisted_share == 0.05


def test_large_list_may_lose_one_row_in_twenty(
    root: Path, build: Any, encoded: Callable[..., bytes]
) -> None:
    photos = root.parent / "photos"
    for number in range(12, 100):
        (photos / f"p{number:02d}.jpg").write_bytes(encoded(number % 12))
    path = root.parent / "boxes.csv"
    path.write_text(
        "image_id,x0,x1,y0,y1\n"
        + "".join(f"p{number:02d}.jpg,0,30,0,30\n" for number in range(100))
    )
    build(
        root,
        photos,
        crop=CropConfig(mode="boxes"),
        boxes=BoxConfig(path=str(path)),
        images_per_shard=50,
    )
    drop_rows(path, 5)
    assert update_plan(update_builder(str(root))).delisted == 5
    drop_rows(path, 1)
    with pytest.raises(SourceError, match="6 of the 100 photographs"):
        update_plan(update_builder(str(root)))


def test_damaged_table_changes_nothing(root: Path, boxes: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file())
    boxes.write_text(boxes.read_text().replace("p03.jpg,0", 'p03.jpg,"0'))
    for run in (update_plan, lambda builder: run_build(builder, ComputeConfig(dask="inline"))):
        with pytest.raises(SourceError, match="the quote that opens in line 5 is not closed"):
            run(update_builder(str(root)))
    after = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file())
    assert [path for path in after if path not in before and not path[0].name.startswith(".")] == []


def test_photographs_removed_on_request_are_not_missed_in_the_list(root: Path, boxes: Path) -> None:
    asked = Removal(frozenset(f"p{number:02d}.jpg" for number in range(8, 12)))
    drop_rows(boxes, 4)
    assert update_plan(update_builder(str(root), asked)).delisted is None
