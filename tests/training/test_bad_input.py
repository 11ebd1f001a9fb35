"""What a run says of inputs that are damaged or do not belong together, before or while it
trains."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_jobs import Prepared, generative

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborTable
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.errors import CacheError, DatabaseError, StorageError, TrainingError, UsageError
from rdm.storage import Folder
from rdm.storage.verified import digest_file
from rdm.training.checkpoints import Checkpoints
from rdm.training.config import TrainConfig
from rdm.training.data.latent_cache import LatentCache, build_cache
from rdm.training.data.latent_tar import write_tar
from rdm.training.data.rows import TrainingRows
from rdm.training.job.launch import run_training
from rdm.training.objectives.generative import open_training
from rdm.training.stats import read_stats


def _rewrite(cache: Path, name: str, change: Callable[[int, np.ndarray], np.ndarray]) -> None:
    """Write a tar of arrays again with changed arrays, as if it had been built so."""
    with tarfile.open(cache / name) as tar:
        arrays = [np.load(io.BytesIO(tar.extractfile(m).read())) for m in tar.getmembers()]  # type: ignore[union-attr]
    write_tar(
        cache / name,
        name.removesuffix(".tar"),
        [change(row, array) for row, array in enumerate(arrays)],
    )
    info = Folder(str(cache)).read_json("cache.json")
    info["files"][name] = digest_file(cache / name).model_dump()
    Folder(str(cache)).write_json("cache.json", info)


def _rewrite_table(database: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the first shard of the neighbor table in place."""
    path = database / NeighborTable(Folder(str(database)), "train").paths("00000")[0]
    pq.write_table(change(pq.read_table(path)), path)


def _with_ids(ids: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index("neighbor_ids")
        values = ids(np.array(table.column("neighbor_ids").to_pylist(), np.int64))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        return table.set_column(place, "neighbor_ids", lists)

    return change


def _replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _open(cache: object, database: object, recipe: TrainConfig) -> TrainingRows:
    return TrainingRows.open(str(cache), str(database), generative(recipe))


def test_a_missing_shard_is_named(
    prepared: Prepared, own_cache: Path, tiny_recipe: TrainConfig
) -> None:
    data = _open(own_cache, prepared.database, tiny_recipe)
    (own_cache / "00000.tar").unlink()
    with pytest.raises(CacheError, match="cannot be read: a file is missing") as caught:
        data.load_shard(0)
    assert caught.value.where == str(own_cache / "00000.tar")


@pytest.mark.parametrize("name", ["00001.parquet", "00001.tar"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "bytes instead of"),
        (lambda data: b"", "cannot be read"),
        (lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:], "digest differs"),
    ],
    ids=["truncated", "empty", "one bit"],
)
def test_a_damaged_file_is_named(
    prepared: Prepared,
    own_cache: Path,
    tiny_recipe: TrainConfig,
    name: str,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    path = own_cache / name
    path.write_bytes(damage(path.read_bytes()))
    data = _open(own_cache, prepared.database, tiny_recipe)
    with pytest.raises(CacheError, match=message) as caught:
        data.load_shard(1)
    assert caught.value.where == str(path)


def test_a_shard_whose_table_is_missing_is_named(
    prepared: Prepared, own_cache: Path, tiny_recipe: TrainConfig
) -> None:
    data = _open(own_cache, prepared.database, tiny_recipe)
    (own_cache / "00001.parquet").unlink()
    with pytest.raises(CacheError, match="missing") as caught:
        _ = data.shards
    assert caught.value.where == str(own_cache / "00001.parquet")


def test_a_tar_with_fewer_members_than_its_table_has_rows_is_refused(
    prepared: Prepared, own_cache: Path, tiny_recipe: TrainConfig
) -> None:
    short = np.zeros((8, 8, 8), np.float16)
    write_tar(own_cache / "00000.tar", "00000", [short] * 3)
    _rewrite(own_cache, "00000.tar", lambda _, array: array)
    with pytest.raises(CacheError, match="shorter than 32 members"):
        _open(own_cache, prepared.database, tiny_recipe).load_shard(0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_not_finite_is_named(
    prepared: Prepared, own_cache: Path, tiny_recipe: TrainConfig, value: float
) -> None:
    row = int(_open(own_cache, prepared.database, tiny_recipe)._rows["00000"].rows[2])

    def spoil(number: int, array: np.ndarray) -> np.ndarray:
        if number == row:
            array[0, 1, 1] = value
        return array

    _rewrite(own_cache, "00000.tar", spoil)
    data = _open(own_cache, prepared.database, tiny_recipe)
    with pytest.raises(CacheError, match="1 latents hold numbers that are not finite") as caught:
        data.load_shard(0)
    assert data.keys(0)[2] in caught.value.what


@pytest.mark.parametrize("patch_id", [10**6, -1])
def test_a_neighbor_that_the_database_never_had_is_refused(
    prepared: Prepared, own_database: Path, tiny_recipe: TrainConfig, patch_id: int
) -> None:
    _rewrite_table(
        own_database, _with_ids(lambda ids: np.where(np.arange(ids.shape[1]) == 0, patch_id, ids))
    )
    with pytest.raises(DatabaseError, match=str(patch_id)):
        _open(prepared.cache, own_database, tiny_recipe).load_shard(0)


def test_a_deleted_neighbor_is_refused(
    prepared: Prepared, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    data = _open(prepared.cache, own_database, tiny_recipe)
    patch = int(data.neighbor_ids("00000")[0, 0])
    before = NeighborTable(Folder(str(own_database)), "train").shard("00000")[1]
    run_build(
        update_builder(str(own_database), Removal(patch_ids=frozenset({patch}))),
        ComputeConfig(dask="inline"),
    )
    assert patch not in _open(prepared.cache, own_database, tiny_recipe).neighbor_ids("00000")
    _rewrite_table(own_database, _with_ids(lambda _: before))  # a table that was not repaired
    with pytest.raises(DatabaseError, match=f"deleted patches, the first of 1 is {patch}"):
        _open(prepared.cache, own_database, tiny_recipe).load_shard(0)


def test_a_table_with_another_k_than_it_says_is_refused(
    prepared: Prepared, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    _rewrite_table(own_database, _with_ids(lambda ids: ids[:, :3]))
    with pytest.raises(DatabaseError, match="not 6 in each"):
        _open(prepared.cache, own_database, tiny_recipe).load_shard(0)


def test_neighbors_that_were_looked_up_with_another_encoder_are_refused(
    prepared: Prepared, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    folder = Folder(str(own_database))
    part = next(part for part in NeighborTable(folder, "train").parts if part.kind == "queryset")
    folder.write_json(part.path, {**folder.read_json(part.path), "encoder_digest": "0" * 16})
    version = folder.read_json("manifest.json")["current"]
    before = hashlib.sha256(folder.read_bytes(version)).hexdigest()
    _replace_text(
        own_database / version,
        part.sha256,
        hashlib.sha256(folder.read_bytes(part.path)).hexdigest(),
    )
    after = hashlib.sha256(folder.read_bytes(version)).hexdigest()
    _replace_text(own_database / "manifest.json", before, after)
    with pytest.raises(DatabaseError, match="looked up with another encoder"):
        _open(prepared.cache, own_database, tiny_recipe)


def test_embeddings_of_another_length_than_the_network_reads_are_refused(
    prepared: Prepared, tiny_recipe: TrainConfig
) -> None:
    config = tiny_recipe.with_overrides(["objective.network.cross_attention_dim=32"])
    with pytest.raises(CacheError, match="embeddings have 16 dimensions, the network reads 32"):
        open_training(prepared.cache, prepared.database, generative(config))


def test_latents_of_another_size_than_the_network_samples_are_refused(
    prepared: Prepared, tiny_recipe: TrainConfig
) -> None:
    config = tiny_recipe.with_overrides(["objective.network.sample_size=16"])
    with pytest.raises(CacheError, match="the latents are 8x8, the network draws 16 by 16"):
        open_training(prepared.cache, prepared.database, generative(config))


def test_latents_of_other_crops_than_the_neighbors_are_refused(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    config = LatentCache(prepared.cache).config
    queries = config.queries.model_copy(
        update={"crop": config.queries.crop.model_copy(update={"seed": 7})}
    )
    other = config.model_copy(update={"queries": queries})
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_cache(str(tmp_path / "other"), other, pool)
    with pytest.raises(CacheError, match="no neighbors of the query set"):
        _open(tmp_path / "other", prepared.database, tiny_recipe)


def test_latents_of_another_first_stage_are_refused(
    prepared: Prepared, own_cache: Path, tiny_recipe: TrainConfig
) -> None:
    folder = Folder(str(own_cache))
    folder.write_json("cache.json", {**folder.read_json("cache.json"), "latents_digest": "0" * 16})
    with pytest.raises(CacheError, match="another first stage"):
        open_training(str(own_cache), prepared.database, generative(tiny_recipe))


def test_latents_of_another_query_set_are_refused(
    prepared: Prepared, own_cache: Path, tiny_recipe: TrainConfig
) -> None:
    folder = Folder(str(own_cache))
    folder.write_json("cache.json", {**folder.read_json("cache.json"), "queries_digest": "0" * 16})
    with pytest.raises(CacheError, match="no neighbors of the query set"):
        open_training(str(own_cache), prepared.database, generative(tiny_recipe))


def test_more_neighbors_than_are_stored_are_refused(
    prepared: Prepared, tiny_recipe: TrainConfig
) -> None:
    more = ["objective.conditions.neighbors.k_train=7", "objective.conditions.neighbors.pool=null"]
    config = tiny_recipe.with_overrides(more)
    with pytest.raises(CacheError, match="training takes 7 neighbors, but 6 are stored"):
        open_training(prepared.cache, prepared.database, generative(config))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("setting", "message"),
    [("device=cuda", "PyTorch finds no GPU"), ("precision=fp16", "DeepSpeed refuses on a CPU")],
)
def test_what_only_a_gpu_can_do_is_refused_where_there_is_none(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        run_training(tiny_recipe.with_overrides([setting]), prepared.inputs(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer=muon"], "zero_stage=0"),
        (["precision=fp16", "zero_stage=0"], "zero_stage of 1 or more"),
        (["compile=true", "zero_stage=3"], "zero_stage below 3"),
        (["more_ema_decays=[1.5]"], "more_ema_decays"),
    ],
)
def test_settings_that_contradict_each_other_are_usage_errors(
    tiny_recipe: TrainConfig, settings: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_recipe.with_overrides(settings)


def test_a_micro_batch_that_does_not_divide_a_ranks_share_is_refused(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="no multiple of micro_batch_size 3"):
        run_training(
            tiny_recipe.with_overrides(["micro_batch_size=3"]), prepared.inputs(tmp_path / "run")
        )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_batch_whose_loss_is_not_finite_is_written_down(
    prepared: Prepared, own_cache: Path, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    # Finite in float16, but its exponential is not: the posterior's variance is infinite.
    _rewrite(own_cache, "00000.tar", lambda _, array: array * 0 + 60000)
    inputs = prepared.inputs(tmp_path / "run").model_copy(update={"cache": str(own_cache)})
    with pytest.raises(TrainingError, match="not finite at step"):
        run_training(tiny_recipe.with_overrides(["log_every=5", "max_steps=10"]), inputs)
    found = sorted((tmp_path / "run" / "bad_batches").glob("*.json"))
    assert found
    record = json.loads(found[0].read_text())
    assert any(row["losses"] in ("nan", "inf") for row in record["samples"])
    assert all({"key", "stream_position", "timesteps"} <= set(row) for row in record["samples"])
    assert found[0].with_suffix(".safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_fills_up_at_a_checkpoint_leaves_the_last_one(
    prepared: Prepared, tiny_recipe: TrainConfig, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(200_000)
    config = tiny_recipe.with_overrides(["max_steps=4", "checkpoint_every=2", "grids_per_decade=0"])
    run_training(config, prepared.inputs(disk / "run"))
    held = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())
    small_disk(held // 1000 + 150)
    longer = config.with_overrides(["max_steps=8", "log_every=100"])
    with pytest.raises(StorageError, match="the disk is full"):
        run_training(longer, prepared.inputs(disk / "run"))
    newest = Checkpoints(disk / "run", config).newest()
    assert newest is not None
    assert newest.step == 4
    assert not list((disk / "run" / "checkpoints").glob(".*"))
    small_disk(200_000)
    assert run_training(longer, prepared.inputs(disk / "run")).step == 8
    assert [row.step for row in read_stats(disk / "run")][-1] == 8
