from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.database.changes.version_diff import describe_changes
from rdm.report.html.changes import change_rows, write_changes_page
from rdm.report.html.images import data_uri
from rdm.sources import CropConfig

INLINE = ComputeConfig(dask="inline")


@pytest.fixture
def root(photos: Path, tmp_path: Path, tiny_encoder: str, encoded: Callable[..., bytes]) -> Path:
    """A database whose version 2 has three new photographs, and neither p00 nor p01 any more."""
    crop = CropConfig(frame_size=40, patch_size=24, min_patches=2, max_patches=2)
    config = BuildConfig(
        source=f"folder://{photos}", encoder=tiny_encoder, images_per_shard=5, crop=crop
    )
    run_build(DatabaseBuilder(str(tmp_path / "db"), config), INLINE)
    for number in range(20, 23):
        (photos / f"p{number}.jpg").write_bytes(encoded(number))
    (photos / "p00.jpg").unlink()
    run_build(update_builder(str(tmp_path / "db"), Removal(frozenset(["p01.jpg"]))), INLINE)
    return tmp_path / "db"


def page_of(root: Path, path: Path, examples: SimpleNamespace, **fields: int) -> SimpleNamespace:
    database = RetrievalDatabase.open(str(root))
    write_changes_page(path, database, describe_changes(database.folder, version=2), **fields)
    return examples.Page(path.read_text(encoding="utf-8"))


def test_table_tells_what_came_and_went_and_why(root: Path) -> None:
    rows = {
        row["what"]: row
        for row in change_rows(describe_changes(RetrievalDatabase.open(str(root)).folder))
    }
    counts = {what: row["count"] for what, row in rows.items()}
    assert counts == {
        "photographs added": "3",
        "patches added": "6",
        "photographs: removed on request": "1",
        "photographs: vanished from the source": "1",
        "patches: removed on request": "2",
        "patches: vanished from the source": "2",
        "patches in the index": "26",
    }
    assert "recall@20 1.0000 before, 1.0000 now" in rows["patches in the index"]["detail"]


def test_page_shows_new_patches_and_names_removed_ones(
    root: Path, tmp_path: Path, examples: SimpleNamespace
) -> None:
    page = page_of(root, tmp_path / "page.html", examples)
    assert (page.open, page.mismatched) == ([], [])
    assert len(page.all("img")) == 6
    assert "Removed on request: 2 patches of 1 photographs" in page.words
    assert "p01.jpg" in page.words


def test_page_shows_no_pixels_of_what_was_removed(
    root: Path, tmp_path: Path, examples: SimpleNamespace
) -> None:
    import numpy as np

    before = RetrievalDatabase.open(str(root), version=1)
    gone = RetrievalDatabase.open(str(root)).tombstones
    removed = {data_uri(np.asarray(image)) for image in before.pixels(gone)}
    shown = {image["src"] for image in page_of(root, tmp_path / "page.html", examples).all("img")}
    assert len(removed) == 4
    assert removed.isdisjoint(shown)


def test_patch_that_was_new_once_and_is_deleted_now_is_shown_no_more(
    root: Path, tmp_path: Path, examples: SimpleNamespace
) -> None:
    run_build(update_builder(str(root), Removal(frozenset(["p20.jpg"]))), INLINE)
    assert len(page_of(root, tmp_path / "page.html", examples).all("img")) == 4


def test_few_pictures_are_of_as_many_photographs_as_can_be(
    root: Path, tmp_path: Path, examples: SimpleNamespace
) -> None:
    page = page_of(root, tmp_path / "page.html", examples, max_pictures=3)
    assert len(page.all("img")) == 3
    assert all(f"p{number}.jpg" in page.words for number in range(20, 23))


def test_long_lists_of_removed_photographs_are_cut(
    root: Path, tmp_path: Path, examples: SimpleNamespace
) -> None:
    page = page_of(root, tmp_path / "page.html", examples, max_removed=0)
    assert "1 more photographs are not listed." in page.words
