import io
import json
import tarfile

import numpy as np
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.errors import CacheError
from rdm.storage import Folder
from rdm.training.cache import CacheConfig, LatentCache, build_cache
from rdm.training.latents import LatentData


def test_every_crop_and_its_mirror_image_are_stored(prepared):
    cache = LatentCache(prepared.cache)
    rows = [row for stem in cache.stems for row in cache.rows(stem).to_pylist()]
    assert len(rows) == 12 * 2 * 2
    assert len({(row["key"], row["flipped"]) for row in rows}) == len(rows)


def test_the_memory_map_holds_what_the_members_hold(prepared):
    cache = LatentCache(prepared.cache)
    path = cache.folder.local(f"{cache.stems[0]}.tar")
    with tarfile.open(path) as tar:
        members = [np.load(io.BytesIO(file.read())) for m in tar.getmembers() if (file := tar.extractfile(m))]
    assert np.array_equal(cache.latents(cache.stems[0]), np.stack(members))
    assert members[0].shape == (8, 8, 8)


def test_a_rerun_writes_the_same_bytes(prepared, tmp_path):
    config = LatentCache(prepared.cache).config
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_cache(str(tmp_path / "again"), config, pool)
    first, second = LatentCache(prepared.cache), LatentCache(str(tmp_path / "again"))
    assert [first.folder.read_bytes(f"{s}.tar") for s in first.stems] == [
        second.folder.read_bytes(f"{s}.tar") for s in second.stems
    ]


def test_a_folder_with_other_latents_is_refused(prepared):
    config = LatentCache(prepared.cache).config
    other = CacheConfig.model_validate({**config.model_dump(), "resolution": 64})
    with compute_pool(ComputeConfig(dask="inline")) as pool, pytest.raises(CacheError, match="another query set"):
        build_cache(prepared.cache, other, pool)


def test_a_shard_that_was_damaged_is_written_again_by_the_same_command(prepared, own_cache):
    first = LatentCache(str(own_cache))
    tar = own_cache / "00000.tar"
    before = tar.read_bytes()
    tar.unlink()
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_cache(str(own_cache), first.config, pool)
    assert tar.read_bytes() == before
    assert LatentCache(str(own_cache)).info == first.info


def test_a_cache_of_an_older_format_is_refused(own_cache):
    folder = Folder(str(own_cache))
    info = folder.read_json("cache.json")
    folder.write_json("cache.json", {name: value for name, value in info.items() if not name.startswith("format")})
    with pytest.raises(CacheError, match="has format 1, this release reads format 2"):
        LatentCache(str(own_cache))


def test_a_cache_on_another_filesystem_holds_the_same_bytes(prepared):
    first = LatentCache(prepared.cache)
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_cache("memory://latents/cache", first.config, pool)
    second = LatentCache("memory://latents/cache")
    assert second.info == first.info
    assert all(np.array_equal(first.latents(stem), second.latents(stem)) for stem in first.stems)


def test_an_empty_folder_is_no_cache(tmp_path):
    with pytest.raises(CacheError, match="no finished latent cache"):
        LatentCache(str(tmp_path))


def test_training_and_held_out_photographs_are_disjoint_and_complete(prepared, tiny_recipe):
    parts = [
        LatentData.open(prepared.cache, prepared.database, tiny_recipe.objective, held_out=held_out)
        for held_out in (False, True)
    ]
    images = [{image for stem in part.cache.stems for image in part.image_ids(stem)} for part in parts]
    assert images[0].isdisjoint(images[1])
    assert len(images[0] | images[1]) == 12
    assert images[1]


@pytest.mark.parametrize(("held_out", "k"), [(False, 6), (True, 4)])
def test_training_loads_the_pool_and_measuring_the_nearest(prepared, tiny_recipe, held_out, k):
    data = LatentData.open(prepared.cache, prepared.database, tiny_recipe.objective, held_out=held_out)
    shard = data.load_shard(0)
    assert shard["neighbors"].shape == (data.shards[0].num_samples, k, 16)
    assert np.array_equal(shard["neighbors"], data.database.embeddings(data.neighbor_ids("00000")))


def test_latents_of_another_query_set_do_not_match_the_neighbors(prepared, tiny_recipe, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    info = json.loads(LatentCache(prepared.cache).folder.read_bytes("cache.json"))
    (folder / "cache.json").write_text(json.dumps({**info, "queries_digest": "0" * 16}))
    with pytest.raises(CacheError, match="no neighbors of the query set"):
        LatentData.open(str(folder), prepared.database, tiny_recipe.objective)
