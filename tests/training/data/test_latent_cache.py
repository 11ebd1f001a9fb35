from __future__ import annotations

import io
import json
import shutil
import tarfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from training_jobs import Prepared, generative

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import RetrievalDatabase
from rdm.errors import CacheError
from rdm.sources import CropConfig, QuerySetConfig
from rdm.storage import Folder
from rdm.training.config import TrainConfig
from rdm.training.data.latent_cache import CacheConfig, CacheInfo, LatentCache, build_cache
from rdm.training.data.rows import TrainingRows
from rdm.training.objectives.generative import open_training


def build(out: str | Path, config: CacheConfig) -> CacheInfo:
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        return build_cache(str(out), config, pool)


def database_of(rows: TrainingRows) -> RetrievalDatabase:
    """Return the database of rows' neighbors."""
    assert rows.neighbors is not None
    return rows.neighbors.database


def written(cache: str | Path) -> dict[str, int]:
    """Return when each file of a cache's latents was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(Path(cache).glob("0*"))}


@pytest.fixture
def stage_folder(tmp_path: Path) -> Path:
    """A copy of the embedded first stage, in a folder."""
    shutil.copytree(str(files("rdm") / "assets" / "autoencoder-kl-f4"), tmp_path / "stages" / "kl")
    return tmp_path / "stages" / "kl"


def test_every_crop_and_its_mirror_image_are_stored(prepared: Prepared) -> None:
    cache = LatentCache(prepared.cache)
    rows = [row for stem in cache.stems for row in cache.rows(stem).to_pylist()]
    assert len(rows) == 12 * 2 * 2
    assert len({(row["key"], row["flipped"]) for row in rows}) == len(rows)


def test_the_memory_map_holds_what_the_members_hold(prepared: Prepared) -> None:
    cache = LatentCache(prepared.cache)
    path = cache.folder.local(f"{cache.stems[0]}.tar")
    with tarfile.open(path) as tar:
        members = [
            np.load(io.BytesIO(file.read()))
            for m in tar.getmembers()
            if (file := tar.extractfile(m))
        ]
    assert np.array_equal(cache.latents(cache.stems[0]), np.stack(members))
    assert members[0].shape == (8, 8, 8)


def test_a_rerun_writes_the_same_bytes(prepared: Prepared, tmp_path: Path) -> None:
    config = LatentCache(prepared.cache).config
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_cache(str(tmp_path / "again"), config, pool)
    first, second = LatentCache(prepared.cache), LatentCache(str(tmp_path / "again"))
    assert [first.folder.read_bytes(f"{s}.tar") for s in first.stems] == [
        second.folder.read_bytes(f"{s}.tar") for s in second.stems
    ]


def test_a_folder_with_other_latents_is_refused(prepared: Prepared) -> None:
    config = LatentCache(prepared.cache).config
    other = CacheConfig.model_validate({**config.model_dump(), "resolution": 64})
    with pytest.raises(CacheError, match="latents of another resolution"):
        build(prepared.cache, other)


def test_a_first_stage_given_by_a_relative_path_opens_from_every_directory(
    prepared: Prepared,
    stage_folder: Path,
    tiny_recipe: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = LatentCache(prepared.cache).config.model_copy(update={"autoencoder": "kl"})
    monkeypatch.chdir(stage_folder.parent)
    build(tmp_path / "cache", config)
    monkeypatch.chdir(tmp_path)
    _, objective = open_training(
        str(tmp_path / "cache"), prepared.database, generative(tiny_recipe)
    )
    assert objective.provenance.autoencoder == str(stage_folder)


def test_the_same_latents_by_another_path_and_in_other_batches_are_the_same_cache(
    own_cache: Path, stage_folder: Path
) -> None:
    first, before = LatentCache(str(own_cache)), written(own_cache)
    build(
        own_cache,
        first.config.model_copy(update={"autoencoder": str(stage_folder), "batch_size": 3}),
    )
    again = LatentCache(str(own_cache))
    assert (again.digest, written(own_cache)) == (first.digest, before)
    assert again.config.autoencoder == str(stage_folder)


@pytest.fixture
def photo_cache(photos: Path) -> CacheConfig:
    """The configuration of a cache of twelve photographs, four to a shard."""
    crop = CropConfig(frame_size=40, patch_size=32, min_patches=2, max_patches=2)
    queries = QuerySetConfig(source=f"folder://{photos}", crop=crop, images_per_shard=4)
    return CacheConfig(queries=queries, resolution=32)


@pytest.fixture
def out_of_reach(photos: Path, bound_by_permissions: None) -> Path:
    """A photograph that may not be read; a test may permit it."""
    path = photos / "p05.jpg"
    path.chmod(0)
    return path


def test_photographs_that_are_not_usable_are_listed_with_their_causes(
    photos: Path, photo_cache: CacheConfig, out_of_reach: Path, tmp_path: Path
) -> None:
    (photos / "p02.jpg").write_bytes(b"")
    build(tmp_path / "cache", photo_cache)
    cache = LatentCache(str(tmp_path / "cache"))
    assert cache.info.failures == [
        ("p02.jpg", "empty file"),
        ("p05.jpg", "cannot be read: Permission denied"),
    ]
    images = {
        image for stem in cache.stems for image in cache.rows(stem).column("image_id").to_pylist()
    }
    assert images == {f"p{number:02d}.jpg" for number in range(12)} - {"p02.jpg", "p05.jpg"}


def test_what_can_be_read_again_is_encoded_by_the_same_command_and_nothing_else(
    photo_cache: CacheConfig, out_of_reach: Path, tmp_path: Path
) -> None:
    build(tmp_path / "cache", photo_cache)
    before = written(tmp_path / "cache")
    build(tmp_path / "cache", photo_cache)
    assert written(tmp_path / "cache") == before
    out_of_reach.chmod(0o644)
    info = build(tmp_path / "cache", photo_cache)
    after = written(tmp_path / "cache")
    assert (info.failures, info.num_latents) == ([], 12 * 2 * 2)
    assert {name for name in after if after[name] != before[name]} == {"00001.tar", "00001.parquet"}


def test_a_shard_that_was_damaged_is_written_again_by_the_same_command(
    prepared: Prepared, own_cache: Path
) -> None:
    first = LatentCache(str(own_cache))
    tar = own_cache / "00000.tar"
    before = tar.read_bytes()
    tar.unlink()
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_cache(str(own_cache), first.config, pool)
    assert tar.read_bytes() == before
    assert LatentCache(str(own_cache)).info == first.info


@pytest.mark.parametrize("found", [2, 4])
def test_a_cache_of_another_format_is_neither_read_nor_added_to(
    own_cache: Path, found: int
) -> None:
    folder, config = Folder(str(own_cache)), LatentCache(str(own_cache)).config
    folder.write_json("cache.json", {**folder.read_json("cache.json"), "format_version": found})
    before = written(own_cache)
    for refused in (lambda: LatentCache(str(own_cache)), lambda: build(own_cache, config)):
        with pytest.raises(CacheError, match=f"has format {found}, this release reads format 3"):
            refused()
    assert written(own_cache) == before


def test_a_cache_on_another_filesystem_holds_the_same_bytes(prepared: Prepared) -> None:
    first = LatentCache(prepared.cache)
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_cache("memory://latents/cache", first.config, pool)
    second = LatentCache("memory://latents/cache")
    assert second.info == first.info
    assert all(np.array_equal(first.latents(stem), second.latents(stem)) for stem in first.stems)


def test_the_description_names_every_fact_of_the_cache(prepared: Prepared) -> None:
    values = Folder(prepared.cache).read_json("cache.json")
    info = LatentCache(prepared.cache).info
    assert sorted(values) == [
        *("config", "content", "counts", "failures", "files", "format", "format_version"),
        *("identity", "latents_digest", "num_latents", "queries_digest", "stems"),
    ]
    assert info.to_json() == values
    assert values["identity"] == {
        "resolution": info.config.resolution,
        "flips": info.config.flips,
        "queries_digest": info.queries_digest,
        "latents_digest": info.latents_digest,
        "content": info.content,
    }


def test_an_empty_folder_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no finished latent cache"):
        LatentCache(str(tmp_path))


def test_training_and_held_out_photographs_are_disjoint_and_complete(
    prepared: Prepared, tiny_recipe: TrainConfig
) -> None:
    parts = [
        TrainingRows.open(
            prepared.cache, prepared.database, generative(tiny_recipe), held_out=held_out
        )
        for held_out in (False, True)
    ]
    images = [
        {image for stem in part.cache.stems for image in part.image_ids(stem)} for part in parts
    ]
    assert images[0].isdisjoint(images[1])
    assert len(images[0] | images[1]) == 12
    assert images[1]


@pytest.mark.parametrize(("held_out", "k"), [(False, 6), (True, 4)])
def test_training_loads_the_pool_and_measuring_the_nearest(
    prepared: Prepared, tiny_recipe: TrainConfig, held_out: bool, k: int
) -> None:
    data = TrainingRows.open(
        prepared.cache, prepared.database, generative(tiny_recipe), held_out=held_out
    )
    shard = data.load_shard(0)
    assert shard["neighbors"].shape == (data.shards[0].num_samples, k, 16)
    assert np.array_equal(
        shard["neighbors"], database_of(data).embeddings(data.neighbor_ids("00000"))
    )


def test_latents_of_another_query_set_do_not_match_the_neighbors(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    info = json.loads(LatentCache(prepared.cache).folder.read_bytes("cache.json"))
    (folder / "cache.json").write_text(json.dumps({**info, "queries_digest": "0" * 16}))
    with pytest.raises(CacheError, match="no neighbors of the query set"):
        TrainingRows.open(str(folder), prepared.database, generative(tiny_recipe))


def test_without_an_autoencoder_a_cache_holds_the_pixels_themselves(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = LatentCache(prepared.cache).config.model_copy(
        update={"autoencoder": None, "resolution": 16}
    )
    build(tmp_path / "pixels", config)
    cache = LatentCache(str(tmp_path / "pixels"))
    pixels, rows = cache.latents(cache.stems[0]), cache.rows(cache.stems[0]).to_pylist()
    assert (cache.content, pixels.dtype, pixels.shape[1:]) == ("pixels", np.uint8, (3, 16, 16))
    assert [row["flipped"] for row in rows[:2]] == [False, True]
    assert np.array_equal(pixels[1], pixels[0][:, :, ::-1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"autoencoder": None, "content": "moments"},
            "content=moments cannot be had without an autoencoder",
        ),
        ({"content": "pixels"}, "content=pixels cannot be had of this autoencoder"),
    ],
)
def test_content_that_does_not_belong_to_the_autoencoder_is_refused(
    prepared: Prepared, tmp_path: Path, changes: dict[str, str | None], words: str
) -> None:
    config = LatentCache(prepared.cache).config.model_copy(update=changes)
    with pytest.raises(CacheError, match=words):
        build(tmp_path / "cache", config)
