"""Classes beside a cache's latents: by folder or by number, shared by a photograph's crops."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.errors import CacheError, SourceError
from rdm.generators.conditions import Conditions, LabelConfig
from rdm.sources import CropConfig, QuerySetConfig
from rdm.storage import Folder
from rdm.training.data.class_annotation import annotate_classes
from rdm.training.data.latent_cache import CacheConfig, build_cache
from rdm.training.data.rows import RowSettings, TrainingRows

CROP = CropConfig(frame_size=40, patch_size=24, min_patches=2, max_patches=2)


def pixel_cache(folder: Path, source: str) -> str:
    queries = QuerySetConfig(source=source, crop=CROP, images_per_shard=4)
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        config = CacheConfig(queries=queries, autoencoder=None, resolution=16)
        build_cache(str(folder), config, pool)
    return str(folder)


@pytest.fixture
def by_folder(tmp_path: Path, encoded: Callable[..., bytes]) -> str:
    """A cache of five photographs: two owls, two ducks, and one in no folder."""
    for number, name in enumerate(("owl/1", "owl/2", "duck/1", "duck/2", "loose")):
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return pixel_cache(tmp_path / "cache", f"folder://{tmp_path}/photos")


def rows_of(cache: str, num_classes: int) -> TrainingRows:
    conditions = Conditions(label=LabelConfig(num_classes=num_classes))
    return TrainingRows.open(cache, None, RowSettings(conditions, 0.0))


def labels_of(rows: TrainingRows) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for shard, stem in enumerate(rows.cache.stems):
        labels = rows.load_shard(shard)["label"].tolist()
        for image, label in zip(rows.image_ids(stem), labels, strict=True):
            found.setdefault(image, set()).add(label)
    return found


def test_folders_are_classes_in_the_order_of_their_names(by_folder: str) -> None:
    info = annotate_classes(by_folder)
    assert (info.names, info.num_labelled) == (("duck", "owl"), 4)
    assert labels_of(rows_of(by_folder, 2)) == {
        "owl/1.jpg": {1},
        "owl/2.jpg": {1},
        "duck/1.jpg": {0},
        "duck/2.jpg": {0},
        "loose.jpg": {-1},
    }


def test_numbers_of_a_tar_are_classes_in_their_own_order(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key, label in (("a", b"10"), ("b", b"9"), ("c", b"10\n")):
            for ending, data in (("jpg", encoded(ord(key))), ("cls", label)):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    cache = pixel_cache(tmp_path / "cache", f"webdataset://{tmp_path}/a.tar")
    assert annotate_classes(cache).names == ("9", "10")
    assert labels_of(rows_of(cache, 2)) == {"a": {1}, "b": {0}, "c": {1}}


def test_provenance_names_the_classes(by_folder: str) -> None:
    annotate_classes(by_folder)
    assert rows_of(by_folder, 2).provenance().class_names == ("duck", "owl")


def test_a_cache_without_classes_names_the_command(by_folder: str) -> None:
    with pytest.raises(CacheError, match="has no classes") as error:
        rows_of(by_folder, 2)
    assert error.value.fix.endswith("--with classes")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cache_digest": "0" * 16}, "classes are of another state of the latents: 0{16}, not "),
        ({"format_version": 2, "names": None}, "classes are of another format: 2, not 1"),
    ],
)
def test_classes_of_other_latents_and_of_another_format_are_refused(
    by_folder: str, changed: dict[str, object], message: str
) -> None:
    annotate_classes(by_folder)
    folder = Folder(by_folder)
    folder.write_json("classes.json", {**folder.read_json("classes.json"), **changed})
    with pytest.raises(CacheError, match=message) as error:
        rows_of(by_folder, 2)
    assert error.value.fix.endswith("--with classes")


def test_another_number_of_classes_is_refused(by_folder: str) -> None:
    annotate_classes(by_folder)
    with pytest.raises(CacheError, match="the cache has 2 classes, the network reads 3"):
        rows_of(by_folder, 3)


def test_a_single_class_is_none(tmp_path: Path, photos: Path) -> None:
    cache = pixel_cache(tmp_path / "cache", f"folder://{photos}")
    with pytest.raises(CacheError, match="have 0 classes"):
        annotate_classes(cache)


def test_a_source_without_classes_says_so(tmp_path: Path) -> None:
    queries = QuerySetConfig(source="samples://openimages-birds/queries", images_per_shard=1024)
    from rdm.sources import QuerySet

    with pytest.raises(SourceError, match="has no classes"):
        QuerySet(queries).class_names()


def test_a_damaged_table_is_refused(by_folder: str) -> None:
    annotate_classes(by_folder)
    path = Path(by_folder) / "classes.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheError, match="damaged"):
        rows_of(by_folder, 2).load_shard(0)


def test_photographs_that_came_later_add_no_class(
    by_folder: str, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    (tmp_path / "photos" / "swan").mkdir()
    (tmp_path / "photos" / "swan" / "1.jpg").write_bytes(encoded(9))
    assert annotate_classes(by_folder).names == ("duck", "owl")
