"""How large patches are in pixels of their photographs: told by the plan and by the build, with a
warning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from rdm.database import BuildConfig, DatabaseBuilder
from rdm.database.building.estimate import EstimateConfig, estimate
from rdm.database.building.jobs import build_config
from rdm.database.building.patch_sizes import measure_patches
from rdm.database.building.results import BuildResult
from rdm.database.contract import CORNERS
from rdm.sources import CropConfig
from rdm.storage import Folder, VersionStore


def test_small_photographs_are_warned_of_by_the_build(
    tmp_path: Path,
    photos: Path,
    build: Callable[..., BuildResult],
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = build(tmp_path / "db", photos, crop=CropConfig())  # photographs of 48 x 40 pixels
    sizes = done.patch_pixels
    assert sizes is not None
    assert sizes.to_json() == {
        "median": 9.0,
        "least": 9,
        "greatest": 9,
        "enlarged": 28.44,
        "enlarged_share": 1.0,
    }
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["crop.mode=whole" in text and "patches have 9 pixels" in text for text in warned] == [
        True
    ]


def test_plan_tells_the_size_of_patches(
    tmp_path: Path, photos: Path, tiny_encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = BuildConfig(source=f"folder://{photos}", encoder=tiny_encoder, precision="float32")
    plan = estimate(
        DatabaseBuilder(str(tmp_path / "db"), config).plan(), EstimateConfig(num_photographs=6)
    )
    assert plan is not None
    assert plan.patch_pixels is not None
    assert plan.patch_pixels.median == 9.0
    assert "--preset whole" in caplog.text


def test_whole_photographs_give_one_patch_each_and_no_warning(
    tmp_path: Path,
    photos: Path,
    build: Callable[..., BuildResult],
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = build(tmp_path / "db", photos, crop=build_config("folder:///x", "whole").crop)
    assert (done.patches, done.photographs) == (12, 12)
    assert done.patch_pixels is not None
    assert done.patch_pixels.median == 40
    assert "pixels of their photographs" not in caplog.text
    folder = Folder(str(tmp_path / "db"))
    part = VersionStore(folder).require().parts_of("patches")[0]
    rows = folder.read_table(part.path, list(CORNERS)).to_pylist()
    assert {tuple(row.values()) for row in rows} == {(4, 0, 44, 40)}


def test_patches_as_large_as_meant_are_not_warned_of(
    tmp_path: Path,
    photos: Path,
    build: Callable[..., BuildResult],
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = build(tmp_path / "db", photos, crop=CropConfig(frame_size=80, patch_size=48))
    assert done.patch_pixels is not None
    assert done.patch_pixels.enlarged == 2.0
    assert "pixels of their photographs" not in caplog.text


def test_no_patch_has_no_size(tmp_path: Path) -> None:
    assert measure_patches(Folder(str(tmp_path)), [], CropConfig()) is None
