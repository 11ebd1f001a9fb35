from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder
from rdm.database.building.build_plan import BuildPlan
from rdm.database.building.estimate import EstimateConfig, estimate
from rdm.database.building.jobs import build_config, run_build, update_builder
from rdm.database.building.results import Estimate
from rdm.errors import DatabaseError
from rdm.sources import CropConfig
from rdm.storage import Folder


def estimated(plan: BuildPlan, config: EstimateConfig) -> Estimate:
    found = estimate(plan, config)
    assert found is not None
    return found


def builder_of(root: Path, photos: Path, encoder: str) -> DatabaseBuilder:
    crop = CropConfig(frame_size=40, patch_size=24, min_patches=2, max_patches=2)
    return DatabaseBuilder(
        str(root), BuildConfig(source=f"folder://{photos}", encoder=encoder, crop=crop)
    )


def test_trial_is_scaled_to_all_photographs_and_leaves_nothing(
    photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    builder = builder_of(tmp_path / "db", photos, tiny_encoder)
    few = estimated(builder.plan(), EstimateConfig(num_photographs=3, price_per_hour=3600))
    assert (few.trial_photographs, few.patches) == (3, 24)
    # four stages, each rounded
    assert (few.hours or 0) * 3600 == pytest.approx(sum((few.seconds or {}).values()), abs=0.03)
    assert few.cost == pytest.approx(sum((few.seconds or {}).values()), abs=0.03)
    assert (few.worker_memory_bytes or 0) > 100_000_000
    assert not (tmp_path / "db").exists()


def test_bytes_are_those_of_the_real_parts(photos: Path, tmp_path: Path, tiny_encoder: str) -> None:
    builder = builder_of(tmp_path / "db", photos, tiny_encoder)
    expected = estimated(builder.plan(), EstimateConfig(num_photographs=12))
    run_build(builder, ComputeConfig(dask="inline"))
    folder = Folder(tmp_path / "db")
    tables = sum(
        folder.size(path)
        for name in ("images", "patches", "metadata")
        for path in folder.files(name)
    )
    real = tables + folder.size("img_emb/img_emb_0000.npy") + folder.size("index/000001/knn.index")
    # tables of a few rows are mostly headers
    assert expected.num_bytes == pytest.approx(real, rel=0.5)
    assert (expected.num_bytes or 0) < real + folder.size("index/000001/index_infos.json")


def test_without_new_photographs_or_a_trial_there_is_nothing_to_say(
    photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    builder = builder_of(tmp_path / "db", photos, tiny_encoder)
    assert estimate(builder.plan(), EstimateConfig(num_photographs=0)) is None
    run_build(builder, ComputeConfig(dask="inline"))
    assert (
        estimate(builder_of(tmp_path / "db", photos, tiny_encoder).plan(), EstimateConfig()) is None
    )


def growth(root: Path, work: Callable[[], object]) -> int:
    """Return the bytes that work adds to a folder; a file under two names counts once."""

    def size() -> int:
        files = [path.stat() for path in root.rglob("*") if path.is_file()]
        return sum({stat.st_ino: stat.st_size for stat in files}.values())

    before = size()
    work()
    return size() - before


def test_bytes_of_an_update_are_those_of_the_whole_index_and_what_is_new(
    photos: Path, tmp_path: Path, tiny_encoder: str, encoded: Callable[..., bytes]
) -> None:
    run_build(builder_of(tmp_path / "db", photos, tiny_encoder), ComputeConfig(dask="inline"))
    for number in range(20, 23):
        (photos / f"p{number}.jpg").write_bytes(encoded(number))
    builder = update_builder(str(tmp_path / "db"))
    expected = estimated(builder.plan(), EstimateConfig())
    real = growth(tmp_path / "db", lambda: run_build(builder, ComputeConfig(dask="inline")))
    # it leaves out the version's file and the index's infos
    assert real - 8000 < (expected.num_bytes or 0) <= real


def test_trial_without_a_usable_photograph_says_so_and_knows_nothing_else(
    photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    run_build(builder_of(tmp_path / "db", photos, tiny_encoder), ComputeConfig(dask="inline"))
    (photos / "p90.jpg").write_bytes(b"no picture")
    told = estimated(update_builder(str(tmp_path / "db")).plan(), EstimateConfig())
    assert (told.trial_photographs, told.num_bytes, told.hours) == (1, None, None)
    assert (told.trial_failed or "").startswith("only 0 of 1 pictures are usable")


def test_index_that_fits_into_no_memory_is_told_by_the_plan(
    photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    builder = builder_of(tmp_path / "db", photos, tiny_encoder)
    builder = replace(builder, config=builder.config.with_overrides(["index.max_index_memory=1KB"]))
    with pytest.raises(DatabaseError, match="no index of 24 vectors fits into 1KB"):
        estimated(builder.plan(), EstimateConfig(num_photographs=3))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_estimate_of_an_update_is_near_the_real_run(
    tmp_path: Path, encoded: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    root, photos = tmp_path / "db", tmp_path / "photos"
    photos.mkdir()

    def add(first: int, count: int) -> None:
        for number in range(first, first + count):
            (photos / f"p{number:03d}.jpg").write_bytes(encoded(number, size=(300, 300)))

    add(0, 100)
    run_build(
        DatabaseBuilder(str(root), build_config(f"folder://{photos}")), ComputeConfig(dask="inline")
    )
    add(100, 10)
    builder = update_builder(str(root))
    expected = estimated(builder.plan(), EstimateConfig())
    started = time.perf_counter()
    real = growth(root, lambda: run_build(builder, ComputeConfig(dask="inline")))
    seconds = time.perf_counter() - started
    with capsys.disabled():
        bytes_error, time_error = (
            (expected.num_bytes or 0) / real - 1,
            (expected.hours or 0) * 3600 / seconds - 1,
        )
        print(  # noqa: T201
            f"\nestimate against the real update: bytes {bytes_error:+.1%}, time {time_error:+.1%}"
        )
    assert expected.num_bytes == pytest.approx(real, rel=0.05)
    assert seconds / 3 < (expected.hours or 0) * 3600 < seconds * 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_estimate_is_near_the_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = DatabaseBuilder(
        str(tmp_path / "db"), build_config("samples://openimages-birds/database")
    )
    expected = estimated(builder.plan(), EstimateConfig())
    started = time.perf_counter()
    result = run_build(builder, ComputeConfig(dask="inline"))
    seconds = time.perf_counter() - started
    with capsys.disabled():
        bytes_error = (expected.num_bytes or 0) / result.num_bytes - 1
        time_error = (expected.hours or 0) * 3600 / seconds - 1
        print(f"\nestimate against the real run: bytes {bytes_error:+.1%}, time {time_error:+.1%}")  # noqa: T201
    assert expected.patches == result.patches
    assert expected.num_bytes == pytest.approx(result.num_bytes, rel=0.15)
    assert seconds / 2 < (expected.hours or 0) * 3600 < seconds * 2
