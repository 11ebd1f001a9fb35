import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from rdm.errors import SourceError, UsageError
from rdm.training.data.photographs import PhotoConfig, PhotoShards

KEEP_ALL = PhotoConfig(image_size=16, held_out_fraction=0)


def encoded(width: int, height: int, color: tuple[int, int, int] = (200, 100, 50)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(directory: Path, files: dict[str, bytes]) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return f"folder://{directory}"


def write_tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return f"webdataset://{path}"


def noise(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def test_a_photograph_of_the_right_size_comes_through_unchanged(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "0.tar", {"a.png": noise(16), "a.cls": b"3"})
    images = PhotoShards(source, KEEP_ALL).load_shard(0)["images"]
    expected = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8).transpose(2, 0, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(images, expected[None])


def test_a_linked_folder_is_not_followed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", {"a.png": encoded(16, 16)})
    (tmp_path / "more").mkdir()
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "more")
    assert PhotoShards(source, KEEP_ALL).num_photographs == 1


def test_the_center_of_a_wide_photograph_is_taken(tmp_path: Path) -> None:
    wide = Image.new("RGB", (48, 16), (0, 0, 0))
    wide.paste((255, 255, 255), (16, 0, 32, 16))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    images = PhotoShards(write_folder(tmp_path, {"a.png": buffer.getvalue()}), KEEP_ALL).load_shard(
        0
    )["images"]
    assert int(images.min()) == 255


def test_only_large_photographs_give_details(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {"small.png": encoded(31, 60), "large.png": encoded(32, 60)})
    config = PhotoConfig(image_size=16, held_out_fraction=0, crops_per_photograph=3)
    data = PhotoShards(source, config)
    assert [shard.num_samples for shard in data.shards] == [1 + 3 + 1]
    assert len(data.load_shard(0)["images"]) == 5


def test_shards_hold_consecutive_photographs(tmp_path: Path) -> None:
    source = write_folder(
        tmp_path, {f"{number}.png": encoded(16, 16, (number, 0, 0)) for number in range(5)}
    )
    config = PhotoConfig(image_size=16, held_out_fraction=0, photographs_per_shard=2)
    data = PhotoShards(source, config)
    assert [(shard.stem, shard.num_samples) for shard in data.shards] == [
        ("00000", 2),
        ("00001", 2),
        ("00002", 1),
    ]
    assert data.load_shard(1)["images"][:, 0, 0, 0].tolist() == [2, 3]


def test_details_do_not_depend_on_the_shard_or_the_run(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {"a.png": noise(64), "b.png": noise(80)})
    alone = PhotoConfig(image_size=16, held_out_fraction=0, photographs_per_shard=1)
    together = alone.model_copy(update={"photographs_per_shard": 10})
    first, second = (PhotoShards(source, alone).load_shard(index)["images"] for index in (0, 1))
    assert np.array_equal(
        np.concatenate([first, second]), PhotoShards(source, together).load_shard(0)["images"]
    )


def test_several_sources_follow_one_another(tmp_path: Path) -> None:
    red = write_folder(tmp_path / "red", {"a.png": encoded(16, 16, (255, 0, 0))})
    blue = write_tar(tmp_path / "blue.tar", {"a.png": encoded(16, 16, (0, 0, 255))})
    images = PhotoShards(f"{red}, {blue}", KEEP_ALL).load_shard(0)["images"]
    assert images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_held_out_photographs_are_the_others(tmp_path: Path) -> None:
    source = write_folder(
        tmp_path, {f"{number}.png": encoded(16, 16, (number, 0, 0)) for number in range(40)}
    )
    config = PhotoConfig(image_size=16, held_out_fraction=0.3)
    parts = [
        PhotoShards(source, config, held_out=held_out).load_shard(0)["images"][:, 0, 0, 0].tolist()
        for held_out in (False, True)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(40))
    assert 4 <= len(parts[1]) <= 20


def test_sample_lies_evenly_over_the_listing(tmp_path: Path) -> None:
    source = write_folder(
        tmp_path, {f"{number}.png": encoded(16, 16, (number, 0, 0)) for number in range(9)}
    )
    assert PhotoShards(source, KEEP_ALL).sample(3)[:, 0, 0, 0].tolist() == [0, 4, 8]


def test_sample_of_too_many_gives_each_photograph_once(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {f"{number}.png": encoded(16, 16) for number in range(3)})
    assert len(PhotoShards(source, KEEP_ALL).sample(100)) == 3


def test_what_is_no_picture_is_named_when_the_source_is_listed(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {"a.png": encoded(16, 16), "b.png": b"text", "c.png": b""})
    with pytest.raises(SourceError, match=r"2 photograph\(s\) cannot be decoded") as caught:
        PhotoShards(source, KEEP_ALL)
    assert "b.png" in caught.value.where
    assert "c.png" in caught.value.where


def test_of_a_large_photograph_only_the_beginning_is_read(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {"a.png": noise(256)})
    os.truncate(tmp_path / "a.png", 300_000_000)  # no place on the disk is taken
    tracemalloc.start()
    try:
        PhotoShards(source, KEEP_ALL)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_size_that_stands_at_the_end_of_the_file_is_found(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(noise(200))).save(buffer, "TIFF", compression="tiff_lzw")
    source = write_folder(tmp_path, {"a.tif": buffer.getvalue()})
    assert PhotoShards(source, KEEP_ALL).shards[0].num_samples == 2


def test_the_digest_tells_other_photographs_and_not_how_they_are_held_out(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {f"{number}.png": encoded(16, 16) for number in range(40)})
    held_out = KEEP_ALL.model_copy(update={"held_out_fraction": 0.5})
    digest = PhotoShards(source, KEEP_ALL).digest
    assert PhotoShards(source, held_out, held_out=True).digest == digest
    (tmp_path / "0.png").write_bytes(encoded(16, 17))
    assert PhotoShards(source, KEEP_ALL).digest != digest


def test_a_truncated_photograph_is_named_when_its_shard_is_read(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {"a.png": encoded(16, 16), "b.png": noise(64)[:4000]})
    data = PhotoShards(source, KEEP_ALL)
    with pytest.raises(SourceError, match=r"1 photograph\(s\) cannot be decoded") as caught:
        data.load_shard(0)
    assert "b.png" in caught.value.where


def test_a_source_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no photograph to train on"):
        PhotoShards(write_folder(tmp_path, {}), KEEP_ALL)


def test_a_fraction_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no photograph is held out"):
        PhotoShards(write_folder(tmp_path, {"a.png": encoded(16, 16)}), KEEP_ALL, held_out=True)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(UsageError, match="is not a source"):
        PhotoShards("nowhere", KEEP_ALL)


def test_picture_behind_a_long_text_is_listed_and_decoded(tmp_path: Path) -> None:
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    # the size stands at the beginning, the pixels do not
    info.add_text("workflow", "x=1 " * 600_000)
    Image.new("RGB", (40, 40), (200, 100, 50)).save(buffer, "PNG", pnginfo=info)
    shards = PhotoShards(write_folder(tmp_path / "a", {"0.png": buffer.getvalue()}), KEEP_ALL)
    assert shards.load_shard(0)["images"][0, :, 5, 5].tolist() == [200, 100, 50]


def test_captions_and_classes_beside_photographs_are_no_photographs(tmp_path: Path) -> None:
    files = {"a.png": encoded(16, 16), "a.txt": b"an owl", "b.png": encoded(16, 16), "b.cls": b"1"}
    assert len(PhotoShards(write_folder(tmp_path, files), KEEP_ALL).sample(100)) == 2


def test_a_caption_of_no_photograph_is_named(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {"a.png": encoded(16, 16), "c.txt": b"an owl"})
    with pytest.raises(SourceError, match=r"1 photograph\(s\) cannot be decoded"):
        PhotoShards(source, KEEP_ALL)
