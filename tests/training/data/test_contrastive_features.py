import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.encoders.image_tower import FEATURE_DIM, NUM_CLASSES
from rdm.encoders.text_tower import HIDDEN_DIM
from rdm.errors import SourceError
from rdm.training.data.contrastive_features import (
    CaptionedPhoto,
    FeatureConfig,
    build_feature_cache,
    photo_views,
    read_captioned_tar,
)


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def sample(seed: int, captions: list[str]) -> dict[str, bytes]:
    return {"jpg": jpeg(seed), "json": json.dumps({"captions": captions}).encode()}


def test_tar_is_read_in_the_order_of_its_keys(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"b": sample(0, ["x"] * 5), "a": sample(1, ["y"] * 5)})
    assert [photo.key for photo in read_captioned_tar(tmp_path / "a.tar")] == ["a", "b"]


def test_fewer_captions_are_repeated(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a": sample(0, ["x", "y"])})
    assert read_captioned_tar(tmp_path / "a.tar")[0].captions == ("x", "y", "x", "y", "x")


def test_sample_without_captions_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"lonely": {"jpg": jpeg(0)}})
    with pytest.raises(SourceError) as error:
        read_captioned_tar(tmp_path / "a.tar")
    assert "lonely" in error.value.where


def test_damaged_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(SourceError, match="damaged"):
        read_captioned_tar(tmp_path / "a.tar")


def test_views_are_a_function_of_the_key() -> None:
    photo = CaptionedPhoto("a", jpeg(0), ("x",) * 5)
    first, again = photo_views(photo, 3), photo_views(photo, 3)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    other = photo_views(CaptionedPhoto("b", jpeg(0), ("x",) * 5), 3)
    assert np.array_equal(first[0], other[0])
    assert not np.array_equal(first[2], other[2])


def test_second_view_is_the_mirror_image_of_the_first() -> None:
    whole, mirrored = photo_views(CaptionedPhoto("a", jpeg(0), ()), 0)
    assert np.array_equal(whole[:, :, ::-1], mirrored)


def test_only_a_webdataset_carries_captions(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="needs captions"):
        build_feature_cache(
            "folder:///photos", tmp_path, FeatureConfig(num_crops=0, text_layers=(6,))
        )


@pytest.mark.slow
def test_cache_has_a_row_per_picture_and_only_missing_shards_are_extracted_again(
    tmp_path: Path,
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(2):
        write_tar(source / f"{number:05d}.tar", {f"k{number}": sample(number, ["a dog", "a cat"])})
    config = FeatureConfig(num_crops=1, text_layers=(6,))
    cache = build_feature_cache(f"webdataset://{source}", tmp_path / "features", config)
    assert cache.keys() == ["k0", "k1"]
    assert cache.load(1)["image"].shape == (1, 3, FEATURE_DIM)
    assert cache.load(1)["text"].shape == (1, 5, HIDDEN_DIM)
    assert cache.class_features().shape == (NUM_CLASSES, HIDDEN_DIM)

    paths = {path.name: path for path in (tmp_path / "features").glob("*.npz")}
    times = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    paths["00001.npz"].unlink()
    build_feature_cache(f"webdataset://{source}", tmp_path / "features", config)
    assert {name for name, path in paths.items() if path.stat().st_mtime_ns != times[name]} == {
        "00001.npz"
    }


def test_hidden_members_are_left_out_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    members = [
        ("./a.jpg", jpeg(0)),
        ("./a.json", b'{"captions": ["old"]}'),
        ("._a.jpg", b"\0\5\x16\7"),
    ]
    members += [
        ("./b.v1/a.JPEG", jpeg(1)),
        ("./b.v1/a.json", b'{"captions": ["x"]}'),
        ("a.json", b'{"captions": ["y"]}'),
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    photos = read_captioned_tar(tmp_path / "a.tar")
    assert [(photo.key, photo.image, photo.captions[0]) for photo in photos] == [
        ("a", jpeg(0), "y"),
        ("b.v1/a", jpeg(1), "x"),
    ]
