from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.errors import SourceError
from rdm.sources import CropConfig, QuerySet, QuerySetConfig, crop_boxes
from rdm.sources.query_set import is_held_out

CROP = CropConfig(frame_size=40, patch_size=32, min_patches=2, max_patches=3)


def query_set(folder: Path, **fields: object) -> QuerySet:
    return QuerySet(
        QuerySetConfig.model_validate({"source": f"folder://{folder}", "crop": CROP, **fields})
    )


def test_shards_cover_the_photographs_in_order(photos: Path) -> None:
    queries = query_set(photos, images_per_shard=5)
    assert queries.stems == ["00000", "00001", "00002"]
    seen = [crop.image_id for stem in queries.stems for crop in queries.crops(stem, [])]
    assert list(dict.fromkeys(seen)) == [f"p{number:02d}.jpg" for number in range(12)]


def test_shard_size_does_not_change_the_crops(photos: Path) -> None:
    def pixels(size: int) -> list[tuple[str, bytes]]:
        queries = query_set(photos, images_per_shard=size)
        return [
            (crop.key, crop.image.tobytes())
            for stem in queries.stems
            for crop in queries.crops(stem, [])
        ]

    assert pixels(12) == pixels(5) == pixels(1)


def test_crops_are_the_boxes_of_the_photograph(photos: Path) -> None:
    crops = [crop for crop in query_set(photos).crops("00000", []) if crop.image_id == "p03.jpg"]
    with Image.open(photos / "p03.jpg") as image:
        expected = [image.crop(tuple(box)) for box in crop_boxes("p03.jpg", 48, 40, CROP).tolist()]
    assert [crop.key for crop in crops] == [f"p03.jpg/{number}" for number in range(len(expected))]
    for crop, image in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(crop.image), np.asarray(image))


def test_unusable_photographs_are_reported_and_the_others_kept(photos: Path) -> None:
    (photos / "p01.jpg").write_bytes(b"words")
    (photos / "p02.jpg").write_bytes(b"")
    failures: list[tuple[str, str]] = []
    seen = {crop.image_id for crop in query_set(photos).crops("00000", failures)}
    assert failures == [("p01.jpg", "not a picture"), ("p02.jpg", "empty file")]
    assert len(seen) == 10


def test_other_files_are_no_queries(photos: Path) -> None:
    (photos / "notes.txt").write_text("x")
    assert query_set(photos).listing.num_rows == 12


def test_source_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match="no pictures"):
        _ = query_set(tmp_path).stems


def test_digest_is_stable_and_changes_with_pictures_and_settings(photos: Path) -> None:
    digest = query_set(photos).digest
    assert query_set(photos).digest == digest
    assert query_set(photos, images_per_shard=3).digest != digest
    (photos / "p11.jpg").unlink()
    assert query_set(photos).digest != digest


def test_held_out_fraction_is_met_and_nested() -> None:
    names = [f"image{number}" for number in range(4000)]
    small, large = (
        {name for name in names if is_held_out(name, fraction)} for fraction in (0.05, 0.2)
    )
    assert small <= large
    assert len(large) / 4000 == pytest.approx(0.2, abs=4 * (0.16 / 4000) ** 0.5)


def test_held_out_extremes() -> None:
    assert not any(is_held_out(str(number), 0) for number in range(100))
    assert all(is_held_out(str(number), 1) for number in range(100))


def test_held_out_photographs_never_change() -> None:
    """Models on disk were trained without these."""
    assert [number for number in range(60) if is_held_out(f"p{number:02d}.jpg", 0.1)] == [
        7,
        12,
        26,
        29,
        54,
    ]


def test_photographs_behind_urls_are_no_query_set(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("http://example.org/a.jpg\n")
    with pytest.raises(SourceError, match="only into a database"):
        QuerySet(QuerySetConfig(source=f"urls://{tmp_path}/list.txt"))


def test_relative_source_is_meant_from_where_it_was_named_in_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.json").write_text('{"source": "folder://photos"}')
    named = QuerySetConfig(source="folder://photos")
    assert named.source == f"folder://{tmp_path}/photos"
    assert (
        QuerySetConfig(source="samples://x").merged_with_file(tmp_path / "settings.json") == named
    )
    assert QuerySetConfig(source="samples://x").with_overrides(["source=folder://photos"]) == named
    assert (
        QuerySetConfig(source="samples://openimages-birds").source == "samples://openimages-birds"
    )
