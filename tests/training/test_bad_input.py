"""What a run says of inputs that are damaged or do not belong together, before or while it trains."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rdm.errors import CacheError, DatabaseError, RdmError, StorageError, TrainingError, UsageError
from rdm.storage import Folder
from rdm.training.checkpoints import Checkpoints
from rdm.training.latents import LatentData
from rdm.training.launch import run_training
from rdm.training.objectives.retrieval_diffusion import open_training
from rdm.training.stats import read_stats


@pytest.fixture
def own_cache(prepared, tmp_path):
    """A copy of the latents, to be damaged."""
    shutil.copytree(prepared.cache, tmp_path / "cache")
    return tmp_path / "cache"


def _rewrite(path: Path, change: Callable[[int, np.ndarray], np.ndarray]) -> None:
    """Write a tar of arrays again with changed arrays."""
    with tarfile.open(path) as tar:
        members = [(m, np.load(io.BytesIO(tar.extractfile(m).read()))) for m in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, (member, array) in enumerate(members):
            buffer = io.BytesIO()
            np.save(buffer, change(row, array))
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)


def test_a_missing_shard_is_named(prepared, own_cache, tiny_recipe):
    data = LatentData.open(str(own_cache), prepared.database, tiny_recipe.objective)
    (own_cache / f"{data.cache.stems[0]}.tar").unlink()
    with pytest.raises(CacheError, match="cannot be read") as caught:
        data.load_shard(0)
    assert f"{data.cache.stems[0]}.tar" in caught.value.where


def test_a_shard_whose_table_is_missing_is_named(prepared, own_cache, tiny_recipe):
    data = LatentData.open(str(own_cache), prepared.database, tiny_recipe.objective)
    (own_cache / f"{data.cache.stems[1]}.parquet").unlink()
    with pytest.raises(RdmError, match="missing") as caught:
        _ = data.shards
    assert f"{data.cache.stems[1]}.parquet" in caught.value.where


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_not_finite_is_named(prepared, own_cache, tiny_recipe, value):
    data = LatentData.open(str(own_cache), prepared.database, tiny_recipe.objective)
    row = int(data._rows(data.cache.stems[0])[2])

    def spoil(number: int, array: np.ndarray) -> np.ndarray:
        if number == row:
            array[0, 1, 1] = value
        return array

    _rewrite(own_cache / f"{data.cache.stems[0]}.tar", spoil)
    with pytest.raises(CacheError, match="1 latents hold numbers that are not finite") as caught:
        data.load_shard(0)
    assert data.keys(0)[2] in caught.value.what


def test_a_neighbor_that_the_database_never_had_is_refused(prepared, tiny_recipe, tmp_path):
    shutil.copytree(prepared.database, tmp_path / "db")
    data = LatentData.open(prepared.cache, str(tmp_path / "db"), tiny_recipe.objective)
    path = tmp_path / "db" / data.table.paths(data.cache.stems[0])[0]
    table = pq.read_table(path)
    place = table.column_names.index("neighbor_ids")
    ids = np.array(table.column("neighbor_ids").to_pylist(), np.int64)
    ids[:, 0] = 10**6
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, [pa.array(ids.tolist(), field.type)]), path)
    data = LatentData.open(prepared.cache, str(tmp_path / "db"), tiny_recipe.objective)
    with pytest.raises(DatabaseError, match="1000000"):
        data.load_shard(0)


def test_latents_of_another_first_stage_are_refused(prepared, own_cache, tiny_recipe):
    folder = Folder(str(own_cache))
    folder.write_json("cache.json", {**folder.read_json("cache.json"), "autoencoder_digest": "0" * 16})
    with pytest.raises(CacheError, match="another first stage"):
        open_training(str(own_cache), prepared.database, tiny_recipe.objective)


def test_latents_of_another_query_set_are_refused(prepared, own_cache, tiny_recipe):
    folder = Folder(str(own_cache))
    folder.write_json("cache.json", {**folder.read_json("cache.json"), "queries_digest": "0" * 16})
    with pytest.raises(CacheError, match="no neighbors of the query set"):
        open_training(str(own_cache), prepared.database, tiny_recipe.objective)


def test_more_neighbors_than_are_stored_are_refused(prepared, tiny_recipe):
    config = tiny_recipe.with_overrides(["objective.conditioning.k_train=7", "objective.conditioning.pool=null"])
    with pytest.raises(CacheError, match="training takes 7 neighbors, but 6 are stored"):
        open_training(prepared.cache, prepared.database, config.objective)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("setting", "message"), [("device=cuda", "PyTorch finds no GPU"), ("precision=fp16", "DeepSpeed refuses on a CPU")]
)
def test_what_only_a_gpu_can_do_is_refused_where_there_is_none(prepared, tiny_recipe, tmp_path, setting, message):
    with pytest.raises(TrainingError, match=message):
        run_training(tiny_recipe.with_overrides([setting]), prepared.inputs(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer=muon"], "zero_stage=0"),
        (["precision=fp16", "zero_stage=0"], "zero_stage of 1 or more"),
        (["more_ema_decays=[1.5]"], "more_ema_decays"),
    ],
)
def test_settings_that_contradict_each_other_are_usage_errors(tiny_recipe, settings, message):
    with pytest.raises(UsageError, match=message):
        tiny_recipe.with_overrides(settings)


def test_a_micro_batch_that_does_not_divide_a_ranks_share_is_refused(prepared, tiny_recipe, tmp_path):
    with pytest.raises(TrainingError, match="no multiple of micro_batch_size 3"):
        run_training(tiny_recipe.with_overrides(["micro_batch_size=3"]), prepared.inputs(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_batch_whose_loss_is_not_finite_is_written_down(prepared, own_cache, tiny_recipe, tmp_path):
    # Finite in float16, but its exponential is not: the posterior's variance is infinite.
    _rewrite(own_cache / sorted(p.name for p in own_cache.glob("*.tar"))[0], lambda _, array: array * 0 + 60000)
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
def test_a_disk_that_fills_up_at_a_checkpoint_leaves_the_last_one(prepared, tiny_recipe, small_disk):
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
    assert run_training(longer, prepared.inputs(disk / "run"))["step"] == 8
    assert [row["step"] for row in read_stats(disk / "run")][-1] == 8
