"""Captions beside a cache's latents: the states of each photograph's own, shared by its crops and
their mirror images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.encoders.text_states import load_text_states
from rdm.errors import CacheError
from rdm.generators.conditions import Conditions, TextConfig
from rdm.sources import CropConfig, QuerySetConfig
from rdm.training.data.latent_cache import CacheConfig, LatentCache, build_cache
from rdm.training.data.rows import RowSettings, TrainingRows
from rdm.training.data.text_annotation import (
    TextAnnotationConfig,
    TextColumn,
    TextInfo,
    annotate_text,
    text_file,
)

LENGTH = 6
CONDITION = TextConfig(length=LENGTH)
ANNOTATION = TextAnnotationConfig(length=LENGTH, captions=2)
INLINE = ComputeConfig(dask="inline")


def annotate(cache: str, config: TextAnnotationConfig = ANNOTATION) -> TextInfo:
    with compute_pool(INLINE) as pool:
        return annotate_text(cache, config, pool)


@pytest.fixture
def captioned(photos: Path) -> Path:
    """Photographs of which p00 has three captions, p01 has one, and the others have none."""
    (photos / "p00.txt").write_text("a red dog\na dog\nneither stored nor read\n")
    (photos / "p01.txt").write_text("two cats\n")
    return photos


@pytest.fixture
def cache(captioned: Path, tmp_path: Path) -> str:
    """Pixels of two crops of each photograph, in shards of five photographs."""
    crop = CropConfig(frame_size=40, patch_size=24, min_patches=2, max_patches=2)
    queries = QuerySetConfig(source=f"folder://{captioned}", crop=crop, images_per_shard=5)
    with compute_pool(INLINE) as pool:
        build_cache(
            str(tmp_path / "cache"),
            CacheConfig(queries=queries, autoencoder=None, resolution=16),
            pool,
        )
    return str(tmp_path / "cache")


def rows_of(cache: str, *, held_out: bool = False) -> TrainingRows:
    settings = RowSettings(Conditions(text=CONDITION), 0.0)
    return TrainingRows.open(cache, None, settings, held_out=held_out)


def test_every_row_has_its_photographs_captions(cache: str) -> None:
    info = annotate(cache)
    assert (info.num_photographs, info.num_captioned) == (12, 2)
    encode, rows = load_text_states("minilm", LENGTH), rows_of(cache)
    arrays, images = rows.load_shard(0), rows.image_ids("00000")
    assert arrays["text"].shape == (20, 2, LENGTH, 384)
    for image, captions in (("p00.jpg", ["a red dog", "a dog"]), ("p01.jpg", ["two cats"])):
        states, present = encode(captions)
        for row in [place for place, found in enumerate(images) if found == image]:
            count = arrays["text_count"][row]
            assert count == len(captions)
            assert np.allclose(arrays["text"][row, :count], states.numpy(), atol=2e-3)
            assert arrays["text_lengths"][row, :count].tolist() == present.sum(1).tolist()


def test_a_photograph_without_captions_has_the_empty_text(cache: str) -> None:
    annotate(cache)
    rows = rows_of(cache)
    row = rows.image_ids("00000").index("p02.jpg")
    arrays = rows.load_shard(0)
    empty, _ = load_text_states("minilm", LENGTH).empty
    assert arrays["text_count"][row] == 1
    assert np.allclose(arrays["text"][row, 0], empty[0].numpy(), atol=2e-3)
    assert arrays["text_lengths"][row, 0] == 2


def test_what_is_held_out_has_the_first_caption_alone(cache: str) -> None:
    annotate(cache)
    column = TextColumn.open(LatentCache(cache), CONDITION, held_out=True)
    rows = rows_of(cache)
    arrays = column.load("00000", rows._rows["00000"])
    assert arrays["text"].shape[1] == 1
    assert arrays["text_count"].max() == 1


def test_a_second_run_writes_nothing_and_another_caption_one_shard(
    cache: str, captioned: Path
) -> None:
    annotate(cache)
    folder = Path(cache)
    before = {name: (folder / text_file(name)).stat().st_mtime_ns for name in ("00000", "00001")}
    annotate(cache)
    after = {name: (folder / text_file(name)).stat().st_mtime_ns for name in before}
    assert after == before
    (captioned / "p01.txt").write_text("three cats\n")
    annotate(cache)
    after = {name: (folder / text_file(name)).stat().st_mtime_ns for name in before}
    assert after["00000"] != before["00000"]
    assert after["00001"] == before["00001"]


def test_a_cache_without_captions_names_the_command(cache: str) -> None:
    with pytest.raises(CacheError, match="has no captions") as error:
        rows_of(cache)
    assert error.value.fix == f"rdm cache annotate --cache {LatentCache(cache).folder.url}"


def test_captions_of_another_length_are_refused(cache: str) -> None:
    annotate(cache, ANNOTATION.model_copy(update={"length": 5}))
    with pytest.raises(CacheError, match="another length: 5, not 6") as error:
        rows_of(cache)
    assert error.value.fix.endswith(" --set length=6")


def test_damaged_captions_are_refused(cache: str) -> None:
    annotate(cache)
    path = Path(cache) / text_file("00001")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheError, match="damaged"):
        rows_of(cache).load_shard(1)


def test_photographs_none_of_which_has_a_caption_are_refused(cache: str, captioned: Path) -> None:
    (captioned / "p00.txt").unlink()
    (captioned / "p01.txt").unlink()
    with pytest.raises(CacheError, match="none of the cache's photographs"):
        annotate(cache)


def test_provenance_names_the_text_network(cache: str) -> None:
    info = annotate(cache)
    assert rows_of(cache).provenance().text_encoder_digest == info.encoder_digest


def test_photographs_that_came_later_are_left_out(
    cache: str, captioned: Path, encoded: Callable[..., bytes]
) -> None:
    (captioned / "p99.jpg").write_bytes(encoded(99))
    (captioned / "p99.txt").write_text("new")
    assert annotate(cache).num_photographs == 12
