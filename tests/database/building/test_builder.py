from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.building.jobs import build_config, run_build, update_builder
from rdm.database.building.results import BuildResult, PlanFacts
from rdm.database.building.stages import add_parts
from rdm.errors import (
    DatabaseError,
    EncoderMismatchError,
    FailureBudgetError,
    SourceError,
    UsageError,
)
from rdm.sources import CropConfig, crop_boxes

Build = Callable[..., BuildResult]
Contents = Callable[[Path], dict[str, bytes]]
INLINE = ComputeConfig(dask="inline")


def test_layout_is_that_of_img2dataset_and_clip_retrieval(built: Path, contents: Contents) -> None:
    names = [name for name in contents(built / "db") if not name.startswith("_markers")]
    assert names == sorted(
        [
            *(
                f"images/{shard:05d}{ending}"
                for shard in range(3)
                for ending in (".parquet", ".tar", "_stats.json")
            ),
            *(f"patches/patches_{part:04d}.parquet" for part in range(3)),
            *(f"img_emb/img_emb_{part:04d}.npy" for part in range(3)),
            *(f"metadata/metadata_{part:04d}.parquet" for part in range(3)),
            "image.index",
            "index/000001/index_infos.json",
            "index/000001/knn.index",
            "index/index_infos.json",
            "index/knn.index",
            "manifest.json",
            "run.json",
            "versions/000001.json",
        ]
    )


def test_patches_are_numbered_in_order_and_cut_as_configured(built: Path) -> None:
    rows = [
        row
        for part in range(3)
        for row in pq.read_table(
            built / "db" / "patches" / f"patches_{part:04d}.parquet"
        ).to_pylist()
    ]
    assert [row["patch_id"] for row in rows] == list(range(len(rows)))
    for name in sorted(os.listdir(built / "photos")):
        boxes = [
            [row[corner] for corner in ("x0", "y0", "x1", "y1")]
            for row in rows
            if row["image_id"] == name
        ]
        assert boxes == crop_boxes(name, 48, 40, CropConfig(frame_size=40, patch_size=24)).tolist()


def test_embeddings_are_unit_vectors_in_half_precision_with_metadata_beside(built: Path) -> None:
    for part in range(3):
        vectors = np.load(built / "db" / "img_emb" / f"img_emb_{part:04d}.npy")
        metadata = pq.read_table(built / "db" / "metadata" / f"metadata_{part:04d}.parquet")
        patches = pq.read_table(built / "db" / "patches" / f"patches_{part:04d}.parquet")
        assert vectors.dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-3)
        assert metadata["patch_id"].to_pylist() == patches["patch_id"].to_pylist()
        assert metadata["image_id"].to_pylist() == patches["image_id"].to_pylist()
        assert min(metadata["norm"].to_pylist()) > 0


def test_summary_counts_what_is_there(root: Path, tmp_path: Path, build: Build) -> None:
    summary = build(root, tmp_path / "photos")
    database = RetrievalDatabase.open(str(root))
    assert (
        summary.version,
        summary.photographs,
        summary.failed,
        summary.unchanged,
    ) == (1, 12, 0, False)
    assert summary.patches == database.version.num_patches == len(database.living_ids())


def test_second_run_does_nothing(
    buildable_root: Path, tmp_path: Path, build: Build, contents: Contents
) -> None:
    before = contents(buildable_root)
    summary = build(buildable_root, tmp_path / "photos")
    assert summary.unchanged
    assert contents(buildable_root) == before


def test_two_builds_give_equal_bytes(
    root: Path, tmp_path: Path, build: Build, contents: Contents
) -> None:
    build(root, tmp_path / "photos")
    build(tmp_path / "other", tmp_path / "photos")
    assert contents(root) == contents(tmp_path / "other")


def test_builder_that_was_read_before_another_build_sees_its_version(
    root: Path, tmp_path: Path, build: Build, tiny_encoder: str
) -> None:
    early = DatabaseBuilder(
        str(root),
        BuildConfig(
            source=f"folder://{tmp_path}/photos",
            encoder=tiny_encoder,
            images_per_shard=5,
            crop=CropConfig(frame_size=40, patch_size=24),
        ),
    )
    assert early.plan().facts() == PlanFacts(
        changed=True, photographs=12, new=12, gone=0, gone_patches=0
    )
    build(root, tmp_path / "photos")
    assert run_build(early, INLINE).unchanged


def test_other_encoder_is_refused(
    buildable_root: Path,
    tmp_path: Path,
    build: Build,
    contents: Contents,
    make_encoder: Callable[[int], str],
) -> None:
    before = contents(buildable_root)
    with pytest.raises(EncoderMismatchError, match="another encoder .*weights_digest"):
        build(buildable_root, tmp_path / "photos", encoder=make_encoder(1))
    assert contents(buildable_root) == before


@pytest.mark.parametrize("field", ["crop", "images_per_shard"])
def test_other_configuration_is_refused(
    living_root: Path, tmp_path: Path, build: Build, contents: Contents, field: str
) -> None:
    before = contents(living_root)
    other = {"crop": CropConfig(frame_size=40, patch_size=16), "images_per_shard": 4}[field]
    with pytest.raises(DatabaseError, match=f"built with another {field}"):
        build(living_root, tmp_path / "photos", **{field: other})
    assert contents(living_root) == before


def test_folder_of_something_else_is_refused(tmp_path: Path, photos: Path, build: Build) -> None:
    with pytest.raises(DatabaseError, match=r"it holds p00\.jpg"):
        build(photos, photos)


def test_empty_source_is_an_error(tmp_path: Path, build: Build) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="source is empty"):
        build(tmp_path / "db", tmp_path / "none")


def test_index_that_fits_into_no_memory_is_told_before_anything_is_embedded(
    tmp_path: Path, photos: Path, build: Build
) -> None:
    with pytest.raises(DatabaseError, match="fits into 1KB: too little memory"):
        build(tmp_path / "db", photos, index={"max_index_memory": "1KB"})
    assert not (tmp_path / "db" / "img_emb").exists()


def test_index_that_no_longer_fits_is_told_before_anything_is_embedded(
    living_root: Path, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    (tmp_path / "photos" / "p20.jpg").write_bytes(encoded(20))
    builder = update_builder(str(living_root), overrides=["index.max_index_memory=1KB"])
    with pytest.raises(DatabaseError, match="fits into 1KB: too little memory"):
        run_build(builder, ComputeConfig(dask="inline"))
    assert len(list((living_root / "img_emb").glob("*.npy"))) == 3


def test_source_without_a_picture_is_an_error(tmp_path: Path, build: Build) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(
        FailureBudgetError, match="only 0 of 0 pictures are usable: 1 not a picture by its name"
    ):
        build(tmp_path / "db", tmp_path / "texts", min_success_rate=0)


def test_too_many_broken_pictures_are_counted_by_cause_and_nothing_is_lost(
    photos: Path, tmp_path: Path, build: Build
) -> None:
    for number, data in (
        (0, b""),
        (3, b"words"),
        (6, b""),
        (9, (photos / "p09.jpg").read_bytes()[:400]),
    ):
        (photos / f"p{number:02d}.jpg").write_bytes(data)
    root = tmp_path / "db"
    with pytest.raises(FailureBudgetError, match="only 8 of 12 pictures are usable") as caught:
        build(root, photos)
    for cause in ("2 empty file", "1 not a picture", "1 broken picture"):
        assert cause in caught.value.what
    assert not (root / "manifest.json").exists()
    shards = {path.name: path.stat().st_mtime_ns for path in (root / "images").iterdir()}

    summary = build(root, photos, min_success_rate=0.5)
    assert (summary.photographs, summary.failed) == (8, 4)
    assert summary.causes["empty file"] == 2
    assert {path.name: path.stat().st_mtime_ns for path in (root / "images").iterdir()} == shards
    found = set(
        RetrievalDatabase.open(str(root))
        .patch_rows(np.arange(summary.patches))["image_id"]
        .to_pylist()
    )
    assert found == {f"p{number:02d}.jpg" for number in range(12) if number % 3}


def test_changed_crop_before_the_first_commit_is_embedded_again(
    photos: Path, tmp_path: Path, tiny_encoder: str, build: Build
) -> None:
    def config(seed: int) -> BuildConfig:
        return BuildConfig(
            source=f"folder://{photos}",
            encoder=tiny_encoder,
            images_per_shard=5,
            crop=CropConfig(seed=seed, min_patches=2, max_patches=2, frame_size=40, patch_size=24),
        )

    stopped = DatabaseBuilder(str(tmp_path / "db"), config(0))
    with stopped.writing() as plan, compute_pool(INLINE) as pool:
        add_parts(plan, pool)
    run_build(DatabaseBuilder(str(tmp_path / "db"), config(1)), INLINE)
    run_build(DatabaseBuilder(str(tmp_path / "fresh"), config(1)), INLINE)
    for name in ("img_emb_0000.npy", "img_emb_0002.npy"):
        assert (tmp_path / "db" / "img_emb" / name).read_bytes() == (
            tmp_path / "fresh" / "img_emb" / name
        ).read_bytes()


def test_picture_replaced_before_the_first_commit_is_embedded_again(
    photos: Path,
    tmp_path: Path,
    build: Build,
    tiny_encoder: str,
    encoded: Callable[..., bytes],
    contents: Contents,
) -> None:
    config = BuildConfig(
        source=f"folder://{photos}",
        encoder=tiny_encoder,
        images_per_shard=5,
        crop=CropConfig(frame_size=40, patch_size=24),
    )
    stopped = DatabaseBuilder(str(tmp_path / "db"), config)
    with stopped.writing() as plan, compute_pool(INLINE) as pool:
        add_parts(plan, pool)
    (photos / "p04.jpg").write_bytes(encoded(99))
    for name in ("db", "fresh"):
        build(tmp_path / name, photos)
    assert contents(tmp_path / "db") == contents(tmp_path / "fresh")


def test_all_vectors_of_a_database_are_made_in_its_first_precision(
    photos: Path, tmp_path: Path, build: Build, encoded: Callable[..., bytes]
) -> None:
    root = tmp_path / "db"
    build(root, photos, precision="bfloat16")
    assert RetrievalDatabase.open(str(root)).status().precision == "bfloat16"
    (photos / "p99.jpg").write_bytes(encoded(99))
    with pytest.raises(DatabaseError, match="built with another precision"):
        build(root, photos, precision="float32")
    build(root, photos, precision="auto")
    assert RetrievalDatabase.open(str(root)).status().precision == "bfloat16"
    build(tmp_path / "fresh", photos, precision="bfloat16")
    last = np.load(root / "img_emb" / "img_emb_0003.npy")
    fresh = np.load(tmp_path / "fresh" / "img_emb" / "img_emb_0002.npy")
    np.testing.assert_allclose(fresh[-len(last) :], last, atol=1e-2)


def test_presets_follow_the_source() -> None:
    assert build_config("samples://openimages-birds").crop.frame_size == 120
    assert build_config("folder:///x").crop == CropConfig(
        frame_size=1200, patch_size=256, min_patches=2, max_patches=3
    )
    assert build_config("folder:///x", "samples").images_per_shard == 128
    with pytest.raises(UsageError, match="no preset 'large'"):
        build_config("folder:///x", "large")
