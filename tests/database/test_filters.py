"""Filters and boxes in a real database: what is left out, why, and that an update leaves what a
rebuild would."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.building.results import BuildResult
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database
from rdm.errors import DatabaseError
from rdm.report.database_card import database_card
from rdm.sources import CropConfig
from rdm.sources.photographs.boxes import BoxConfig
from rdm.sources.photographs.filters import FilterConfig

Build = Callable[..., BuildResult]
Picture = Callable[..., Image.Image]
INLINE = ComputeConfig(dask="inline")
LIMIT = FilterConfig(near_duplicate_bits=6)


def update(root: Path, removal: Removal | None = None) -> BuildResult:
    return run_build(update_builder(str(root), removal), INLINE)


def living(root: Path) -> dict[tuple[Any, ...], np.ndarray]:
    """Return the vector of each living patch by its photograph and box."""
    database = RetrievalDatabase.open(str(root))
    ids = database.living_ids()
    rows = database.patch_rows(ids).select(["image_id", "x0", "y0", "x1", "y1"]).to_pylist()
    return {
        tuple(row.values()): vector
        for row, vector in zip(rows, database.embeddings(ids), strict=True)
    }


def assert_same(root: Path, fresh: Path) -> None:
    """The living patches of both are the same; their vectors may differ in the last bit, by what
    shared their batch."""
    found, expected = living(root), living(fresh)
    assert found.keys() == expected.keys()
    for place, vector in found.items():
        np.testing.assert_allclose(vector, expected[place], atol=1e-3)


def images(root: Path) -> set[str]:
    return {key[0] for key in living(root)}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [
        row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def save(path: Path, image: Image.Image, quality: int = 90) -> None:
    image.save(path, "JPEG", quality=quality)


def test_sizes_are_in_the_ledger(
    photos: Path, tmp_path: Path, build: Build, picture: Picture
) -> None:
    save(photos / "small.jpg", picture(1, (30, 90)))
    save(photos / "long.jpg", picture(1, (200, 40)))
    summary = build(
        tmp_path / "db", photos, filters=FilterConfig(min_image_side=40, max_image_aspect=4)
    )
    assert (summary.photographs, summary.failed) == (12, 0)
    rows = rows_of(tmp_path / "db" / "images")
    left_out = {
        row["image_id"]: (row["status"], row["error_message"])
        for row in rows
        if row["status"] != "success"
    }
    assert left_out == {
        "small.jpg": ("skipped", "too small: 30x90"),
        "long.jpg": ("skipped", "too long: 200x40"),
    }
    assert not update_builder(str(tmp_path / "db")).plan().facts().new


def test_blank_patches_are_left_out_with_their_reason(
    photos: Path, tmp_path: Path, build: Build
) -> None:
    save(photos / "blank.jpg", Image.new("RGB", (48, 40), "gray"))
    half = Image.new("RGB", (96, 40), "gray")
    half.paste(Image.open(photos / "p00.jpg").convert("RGB"))
    save(photos / "half.jpg", half)
    grid = CropConfig(mode="grid", frame_size=40, patch_size=20)
    root = tmp_path / "db"
    summary = build(root, photos, crop=grid, filters=FilterConfig(min_contrast=3))
    dropped = rows_of(root / "dropped")
    reasons = {row["image_id"]: row["reason"] for row in dropped}
    assert [row["image_id"] for row in dropped].count("blank.jpg") == 4
    assert reasons["blank.jpg"] == "blank: contrast 0.0"
    kept = living(root)
    assert summary.patches == len(kept) == 14 * 4 - len(dropped)
    assert not {
        (row["image_id"], row["x0"], row["y0"], row["x1"], row["y1"]) for row in dropped
    } & set(kept)
    status = RetrievalDatabase.open(str(root)).status()
    assert status.dropped_patches == {"blank": len(dropped)}
    assert f"patch: blank | {len(dropped)}" in database_card(RetrievalDatabase.open(str(root)), "")
    assert not verify_database(str(root))
    assert not update_builder(str(root)).plan().facts().new, (
        "a photograph without patches is not stored again"
    )


def test_the_first_of_near_duplicates_is_kept(
    photos: Path, tmp_path: Path, build: Build, picture: Picture
) -> None:
    save(photos / "p05b.jpg", picture(5), quality=40)
    save(photos / "a.jpg", picture(7).resize((96, 80)))
    root = tmp_path / "db"
    build(root, photos, filters=LIMIT)
    assert images(root) == {"a.jpg", *(f"p{n:02d}.jpg" for n in range(12) if n != 7)}
    table = pq.read_table(root / "dropped" / "duplicates_000001.parquet").to_pylist()
    assert [(row["image_id"], row["duplicate_of"]) for row in table] == [
        ("p05b.jpg", "p05.jpg"),
        ("p07.jpg", "a.jpg"),
    ]
    assert RetrievalDatabase.open(str(root)).status().near_duplicates == 2
    assert "near-duplicate of another | 2" in database_card(RetrievalDatabase.open(str(root)), "")
    assert update_builder(str(root)).plan().is_current


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_any_updates_leave_what_a_rebuild_would(
    seed: int, tmp_path: Path, build: Build, picture: Picture
) -> None:
    rng = np.random.default_rng(seed)
    photos, root = tmp_path / "photos", tmp_path / "db"
    photos.mkdir()

    def add(count: int) -> None:
        for name in rng.choice(30, count, replace=False):
            subject, quality = int(rng.integers(0, 6)), int(rng.integers(40, 95))
            save(photos / f"p{name:02d}.jpg", picture(subject), quality)

    add(8)
    build(root, photos, filters=LIMIT)
    for step in range(5):
        present = sorted(photos.iterdir())
        for path in rng.choice(
            np.array(present, dtype=object), min(3, len(present) - 2), replace=False
        ):
            path.unlink()
        add(int(rng.integers(0, 5)))
        if not update_builder(str(root)).plan().is_current:
            update(root)
        if step == 2:
            compact_database(str(root))
        fresh = tmp_path / f"fresh{step}"
        build(fresh, photos, filters=LIMIT)
        assert_same(root, fresh)
        assert update_builder(str(root)).plan().is_current
        assert not verify_database(str(root))
        shutil.rmtree(fresh)


def test_what_looks_like_a_removed_photograph_stays_out(
    photos: Path, tmp_path: Path, build: Build, picture: Picture
) -> None:
    save(photos / "p05b.jpg", picture(5), quality=40)
    root = tmp_path / "db"
    build(root, photos, filters=LIMIT)
    update(root, Removal(frozenset(["p05.jpg"])))
    assert not images(root) & {"p05.jpg", "p05b.jpg"}
    compact_database(str(root))
    save(photos / "p05c.jpg", picture(5), quality=60)
    update(root)
    assert not images(root) & {"p05.jpg", "p05b.jpg", "p05c.jpg"}


def test_removing_a_photograph_that_was_left_out_removes_its_pixels(
    photos: Path, tmp_path: Path, build: Build, picture: Picture
) -> None:
    save(photos / "p05b.jpg", picture(5), quality=40)
    pixels, root = (photos / "p05b.jpg").read_bytes(), tmp_path / "db"
    build(root, photos, filters=LIMIT)
    assert any(pixels in path.read_bytes() for path in (root / "images").glob("*.tar"))
    update(root, Removal(frozenset(["p05b.jpg"])))
    (photos / "p05.jpg").unlink()
    update(root)
    assert not images(root) & {"p05.jpg", "p05b.jpg"}, (
        "a removed photograph does not take the other's place"
    )
    compact_database(str(root))
    assert not any(pixels in path.read_bytes() for path in (root / "images").glob("*.tar"))
    assert not verify_database(str(root))


def test_other_filters_are_refused(photos: Path, tmp_path: Path, build: Build) -> None:
    build(tmp_path / "db", photos)
    with pytest.raises(DatabaseError, match="built with another filters"):
        build(tmp_path / "db", photos, filters=LIMIT)


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    path = tmp_path / "boxes.csv"
    first = ["p01.jpg,/m/a,0,0.5,0,1", "p01.jpg,/m/b,0.5,1,0.2,0.9"]
    rows = [*first, "p02.jpg,/m/a,0,0.02,0,0.02", "p04.jpg,/m/c,0,1,0,1"]
    path.write_text("\n".join(["ImageID,LabelName,XMin,XMax,YMin,YMax", *rows]) + "\n")
    return path


def test_boxes_become_patches_with_labels(
    photos: Path, tmp_path: Path, build: Build, boxes: Path
) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.open(photos / "p04.jpg").save(buffer, "JPEG", exif=exif)
    (photos / "p04.jpg").write_bytes(buffer.getvalue())
    root = tmp_path / "db"
    config = {
        "crop": CropConfig(mode="boxes"),
        "boxes": BoxConfig(path=str(boxes), shape="tight"),
        "filters": FilterConfig(min_patch_side=8),
    }
    summary = build(root, photos, **config)
    assert summary.photographs == 2
    rows = pq.read_table(root / "patches" / "patches_0000.parquet").to_pylist()
    found = [
        (row["image_id"], row["label"], [row[corner] for corner in ("x0", "y0", "x1", "y1")])
        for row in rows
    ]
    assert found == [
        ("p01.jpg", "/m/a", [0, 0, 24, 40]),
        ("p01.jpg", "/m/b", [24, 8, 48, 36]),
        ("p04.jpg", "/m/c", [0, 0, 40, 48]),
    ]
    dropped = pq.read_table(root / "dropped" / "patches_0000.parquet").to_pylist()
    assert [(row["image_id"], row["reason"]) for row in dropped] == [("p02.jpg", "too small: 1x1")]
    assert update_builder(str(root)).plan().is_current

    text = boxes.read_text().replace("/m/b,0.5,1,0.2,0.9", "/m/b,0.25,1,0.2,0.9")
    boxes.write_text(text + "p07.jpg,/m/a,0,1,0,1\n")
    update(root)
    build(tmp_path / "fresh", photos, **config)
    assert_same(root, tmp_path / "fresh")
    assert images(root) == {"p01.jpg", "p04.jpg", "p07.jpg"}
    compact_database(str(root))
    assert_same(root, tmp_path / "fresh")
    assert not verify_database(str(root))
