"""Neighbors inlined in a cache: the same bits as the database's, bound to the state of its
table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_jobs import Prepared, generative, weights_of

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, NeighborTable, RetrievalDatabase, build_neighbors
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.errors import CacheError, DatabaseError, TrainingError
from rdm.storage import Folder
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.data.inlined_neighbors import InlinedInfo, inline_neighbors
from rdm.training.data.latent_cache import LatentCache, build_cache
from rdm.training.data.neighbor_column import NeighborColumn
from rdm.training.data.rows import TrainingRows
from rdm.training.job.launch import run_training

INLINE = ComputeConfig(dask="inline")


def inline(cache: str | Path, database: str | Path) -> InlinedInfo:
    with compute_pool(INLINE) as pool:
        return inline_neighbors(str(cache), str(database), pool)


def delete(database: Path, patch_ids: Iterable[int]) -> None:
    run_build(update_builder(str(database), Removal(patch_ids=frozenset(patch_ids))), INLINE)


def column_of(data: TrainingRows) -> NeighborColumn:
    """Return the neighbors of rows."""
    assert data.neighbors is not None
    return data.neighbors


@pytest.fixture
def inlined(own_cache: Path, own_database: Path) -> Path:
    """A cache with inlined neighbors of a database that is its own."""
    inline(own_cache, own_database)
    return own_cache


def rebuild_table(database: Path, k: int) -> None:
    """Look the neighbors up again with another number of them."""
    table = NeighborTable(Folder(str(database)), "train")
    config = NeighborConfig.model_validate({**table.config.model_dump(), "k_stored": k})
    with compute_pool(INLINE) as pool:
        build_neighbors(str(database), "train", config, pool)


def found_in_one_shard_alone(database: Path, stem: str) -> int:
    """Return a patch that is a neighbor in one shard and in no other."""
    table = NeighborTable(Folder(str(database)), "train")
    others = {
        i
        for other in table.info.stems
        if other != stem
        for i in table.shard(other)[1].ravel().tolist()
    }
    return next(i for i in table.shard(stem)[1].ravel().tolist() if i not in others)


@pytest.mark.parametrize("embedding", ["unit", "raw"])
@pytest.mark.parametrize("held_out", [False, True])
def test_inlined_neighbors_are_those_of_the_database_bit_for_bit(
    prepared: Prepared, own_cache: Path, tiny_recipe: TrainConfig, embedding: str, held_out: bool
) -> None:
    config = generative(
        tiny_recipe.with_overrides([f"objective.conditions.neighbors.embedding={embedding}"])
    )
    mapped = TrainingRows.open(str(own_cache), prepared.database, config, held_out=held_out)
    inline(own_cache, prepared.database)
    inlined = TrainingRows.open(str(own_cache), prepared.database, config, held_out=held_out)
    assert column_of(mapped).inlined is None
    assert column_of(inlined).inlined is not None
    for index in range(len(mapped.shards)):
        one, other = mapped.load_shard(index), inlined.load_shard(index)
        assert one["neighbors"].dtype == other["neighbors"].dtype
        assert np.array_equal(one["neighbors"], other["neighbors"])
        assert np.array_equal(one["moments"], other["moments"])


def test_a_mirror_image_shares_the_neighbors_of_its_crop(
    inlined: Path, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    data = TrainingRows.open(str(inlined), str(own_database), generative(tiny_recipe))
    column = column_of(data)
    assert column.inlined is not None
    # of 8 photographs; 32 latents with mirror images
    assert len(column.inlined.shard("00000", 16)) == 16
    assert data.cache.counts["00000"] == 32


def test_a_rerun_writes_no_shard_again(inlined: Path, own_database: Path) -> None:
    path = inlined / "00000.neighbors.npy"
    before = path.stat().st_mtime_ns
    inline(inlined, own_database)
    assert path.stat().st_mtime_ns == before


def test_a_deleted_neighbor_makes_what_is_inlined_stale(
    inlined: Path, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    gone = int(NeighborTable(Folder(str(own_database)), "train").shard("00000")[1][0, 0])
    delete(own_database, [gone])
    with pytest.raises(CacheError, match="the inlined neighbors are those of version 2") as caught:
        TrainingRows.open(str(inlined), str(own_database), generative(tiny_recipe))
    assert "--inline-neighbors" in caught.value.fix
    inline(inlined, own_database)
    data = TrainingRows.open(str(inlined), str(own_database), generative(tiny_recipe))
    column = column_of(data)
    assert column.inlined is not None
    shards = [column.inlined.shard(stem, size) for stem, size in (("00000", 16), ("00001", 8))]
    assert all(gone not in shard["patch_ids"] for shard in shards)


def test_after_an_update_only_the_shards_whose_neighbors_changed_are_written_again(
    own_cache: Path, own_database: Path
) -> None:
    rebuild_table(own_database, 1)  # few, so that the shards do not share them
    inline(own_cache, own_database)
    stamps = {
        stem: (own_cache / f"{stem}.neighbors.npy").stat().st_mtime_ns
        for stem in ("00000", "00001")
    }
    delete(own_database, [found_in_one_shard_alone(own_database, "00000")])
    inline(own_cache, own_database)
    changed = [
        s
        for s, stamp in stamps.items()
        if (own_cache / f"{s}.neighbors.npy").stat().st_mtime_ns != stamp
    ]
    assert changed == ["00000"]


def test_an_update_that_changes_no_neighbor_leaves_what_is_inlined_valid(
    own_cache: Path, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    rebuild_table(own_database, 1)
    inline(own_cache, own_database)
    neighbors = NeighborTable(Folder(str(own_database)), "train").all_ids
    delete(own_database, [min(set(range(24)) - set(neighbors.ravel().tolist()))])
    config = generative(
        tiny_recipe.with_overrides(
            ["objective.conditions.neighbors.k_train=1", "objective.conditions.neighbors.pool=null"]
        )
    )
    data = TrainingRows.open(str(own_cache), str(own_database), config)
    column = column_of(data)
    assert column.inlined is not None
    assert column.database.version.number == column.inlined.info.database_version + 1
    assert data.load_shard(0)["neighbors"].shape[1] == 1


def test_neighbors_of_another_k_make_what_is_inlined_stale(
    inlined: Path, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    rebuild_table(own_database, 8)
    with pytest.raises(CacheError, match="2 of 2 shards have others"):
        TrainingRows.open(str(inlined), str(own_database), generative(tiny_recipe))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoder_digest", "0" * 16, "another encoder"),
        ("cache_digest", "0" * 16, "another latents"),
        ("embedding_dim", 32, "another dimension"),
        ("format_version", 9, "another format"),
    ],
)
def test_what_is_inlined_for_something_else_is_refused(
    inlined: Path,
    own_database: Path,
    tiny_recipe: TrainConfig,
    field: str,
    value: str | int,
    message: str,
) -> None:
    folder = Folder(str(inlined))
    folder.write_json("neighbors.json", {**folder.read_json("neighbors.json"), field: value})
    with pytest.raises(CacheError, match=message):
        TrainingRows.open(str(inlined), str(own_database), generative(tiny_recipe))


def test_a_damaged_file_of_inlined_neighbors_is_named(
    inlined: Path, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    path = inlined / "00001.neighbors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheError, match="damaged") as caught:
        TrainingRows.open(str(inlined), str(own_database), generative(tiny_recipe)).load_shard(1)
    assert caught.value.where == str(path)


def test_inlined_rows_of_another_k_than_recorded_are_refused(
    inlined: Path, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    folder = Folder(str(inlined))
    folder.write_json("neighbors.json", {**folder.read_json("neighbors.json"), "k_stored": 5})
    with pytest.raises(CacheError, match="not 5 of 16 dimensions for each of 16 crops"):
        TrainingRows.open(str(inlined), str(own_database), generative(tiny_recipe)).load_shard(0)


def test_a_deleted_patch_among_inlined_neighbors_is_refused_though_the_digests_agree(
    inlined: Path, own_database: Path, tiny_recipe: TrainConfig
) -> None:
    data = TrainingRows.open(str(inlined), str(own_database), generative(tiny_recipe))
    patch = int(data.neighbor_ids("00000")[0, 0])
    assert data.neighbors is not None
    database = data.neighbors.database
    version = database.version.model_copy(update={"tombstones": [patch]})
    newer = replace(
        data,
        neighbors=replace(data.neighbors, database=RetrievalDatabase(database.folder, version)),
    )
    with pytest.raises(DatabaseError, match=f"deleted patches, the first of 1 is {patch}"):
        newer.load_shard(0)


def test_a_database_without_neighbors_of_the_query_set_is_refused(
    own_cache: Path, own_database: Path
) -> None:
    folder = Folder(str(own_cache))
    folder.write_json("cache.json", {**folder.read_json("cache.json"), "queries_digest": "0" * 16})
    with pytest.raises(CacheError, match="no neighbors of the query set"):
        inline(own_cache, own_database)


def test_the_description_says_which_version_was_inlined(inlined: Path, own_database: Path) -> None:
    info = InlinedInfo.model_validate(Folder(str(inlined)).read_json("neighbors.json"))
    assert info.database_version == RetrievalDatabase.open(str(own_database)).version.number
    assert info.k_stored == 6
    assert set(info.files) == {"00000.neighbors.npy", "00001.neighbors.npy"}


SHORT = ["max_steps=4", "checkpoint_every=2", "grids_per_decade=0", "precision=fp32"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_learns_the_same_from_inlined_neighbors(
    inlined: Path, own_database: Path, prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    config = tiny_recipe.with_overrides(SHORT)
    for name, cache in (("mapped", prepared.cache), ("inlined", str(inlined))):
        run_training(
            config, TrainInputs(out=str(tmp_path / name), cache=cache, database=str(own_database))
        )
    assert weights_of(tmp_path / "mapped") == weights_of(tmp_path / "inlined")


@pytest.mark.usefixtures("bound_by_permissions")
def test_a_photograph_that_can_be_read_again_brings_its_neighbors(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    config, out = LatentCache(prepared.cache).config, str(tmp_path / "cache")

    def prepare() -> None:
        with compute_pool(INLINE) as pool:
            build_cache(out, config, pool)
            inline_neighbors(out, prepared.database, pool)

    path = Path(prepared.cache).parent / "queries" / "queries03.jpg"
    path.chmod(0)
    prepare()
    path.chmod(0o644)
    prepare()
    data = TrainingRows.open(out, prepared.database, generative(tiny_recipe))
    assert len(data.load_shard(0)["neighbors"]) == data.shards[0].num_samples


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resumed_run_takes_up_an_update_and_refuses_another_cache(
    own_cache: Path, own_database: Path, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    config = tiny_recipe.with_overrides(SHORT)
    inputs = TrainInputs(
        out=str(tmp_path / "run"), cache=str(own_cache), database=str(own_database)
    )
    run_training(config, inputs)
    longer = config.with_overrides(["max_steps=6"])
    without_flips = LatentCache(str(own_cache)).config.model_copy(update={"flips": False})
    with compute_pool(INLINE) as pool:
        build_cache(str(tmp_path / "other"), without_flips, pool)
    with pytest.raises(TrainingError, match="another latent cache"):
        run_training(longer, inputs.model_copy(update={"cache": str(tmp_path / "other")}))
    delete(
        own_database,
        [int(NeighborTable(Folder(str(own_database)), "train").shard("00000")[1][0, 0])],
    )
    assert run_training(longer, inputs).step == 6
    info = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert info["database"]["version"] == 3
    assert info["database"]["earlier_versions"] == [2]
