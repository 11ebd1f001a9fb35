"""RARM, the LDM baseline and the small RDM recipes for real: trained, killed, resumed, sampled and
measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_jobs import Prepared, generative, kill_all, start_job, wait_for_step
from vq_first_stage import make_vq_first_stage

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import RetrievalDatabase
from rdm.errors import CacheError, UsageError
from rdm.evaluation.heldout import held_out_losses, held_out_rows
from rdm.recipes import recipe_config
from rdm.sampling import SampleSettings, open_model, proposed_queries, sample, text_queries
from rdm.sampling.output import write_samples
from rdm.sources import QuerySet
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.data.latent_cache import CacheConfig, LatentCache, build_cache
from rdm.training.job.launch import run_training
from rdm.training.stats import read_stats

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SHORT = [
    "batch_size=4",
    "checkpoint_every=6",
    "log_every=1",
    "num_ranks=2",
    "warmup_steps=2",
    "device=cpu",
]
SMALL_RARM = [
    "objective.network.codebook_size=64",
    "objective.network.side=8",
    "objective.network.num_layers=2",
    "objective.network.width=32",
    "objective.network.cross_attention_dim=16",
    "objective.conditions.neighbors.pool=6",
    "objective.held_out_fraction=0.3",
]
RARM = recipe_config("rarm-tiny").with_overrides([*SHORT, *SMALL_RARM, "max_steps=24"])
SETTINGS = SampleSettings(k=3, num_steps=4, batch_size=4)


def _cache(prepared: Prepared, out: Path, **changes: str | int) -> str:
    config = LatentCache(prepared.cache).config
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_cache(str(out), CacheConfig.model_validate({**config.model_dump(), **changes}), pool)
    return str(out)


@pytest.fixture(scope="module")
def token_cache(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The codebook rows of `prepared`'s queries, 8x8 of them at 32 px."""
    root = tmp_path_factory.mktemp("tokens")
    queries = QuerySet(LatentCache(prepared.cache).config.queries)
    crops = [
        crop.image.resize((32, 32)) for stem in queries.stems for crop in queries.crops(stem, [])
    ]
    pictures = torch.from_numpy(np.stack([np.asarray(crop).transpose(2, 0, 1) for crop in crops]))
    first_stage = make_vq_first_stage(root / "vq", pictures, 64)
    return _cache(prepared, root / "cache", autoencoder=first_stage, content="indices")


@pytest.fixture(scope="module")
def rarm(prepared: Prepared, token_cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RARM that nothing disturbed."""
    out = tmp_path_factory.mktemp("rarm") / "run"
    run_training(RARM, TrainInputs(out=str(out), cache=token_cache, database=prepared.database))
    return out


@pytest.fixture(scope="module")
def ldm(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An LDM that nothing disturbed."""
    out = tmp_path_factory.mktemp("ldm") / "run"
    run_training(_ldm_config(tiny_recipe), prepared.inputs(out))
    return out


def _ldm_config(tiny_recipe: TrainConfig) -> TrainConfig:
    sizes = [
        f"objective.network.{name}={json.dumps(value)}"
        for name, value in generative(tiny_recipe).network.model_dump(mode="json").items()
    ]
    return recipe_config("ldm-tiny").with_overrides(
        [*SHORT, *sizes, "max_steps=24", "objective.held_out_fraction=0.3"]
    )


def test_a_killed_rarm_resumes_to_the_same_bits(
    rarm: Path, prepared: Prepared, token_cache: str, tmp_path: Path
) -> None:
    inputs = TrainInputs(out=str(tmp_path / "run"), cache=token_cache, database=prepared.database)
    process = start_job(RARM, inputs)
    wait_for_step(process, tmp_path / "run", 9)
    kill_all(process, tmp_path / "run")
    run_training(RARM, inputs)
    weights = "model/network/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (rarm / weights).read_bytes()
    losses, expected = ([row.loss for row in read_stats(run)] for run in (tmp_path / "run", rarm))
    assert losses == expected


def test_statistics_tell_the_networks_flops_per_second(rarm: Path) -> None:
    rows = [row.numbers() for row in read_stats(rarm)]
    ratios = {round(row["model_flops_per_second"] / row["samples_per_second"]) for row in rows}
    assert len(ratios) == 1  # FLOPs per sample
    assert "model_flop_utilization" not in rows[-1]


def test_a_rarm_draws_grids(rarm: Path) -> None:
    assert sorted(path.name for path in (rarm / "grids").iterdir()) == [
        "step-00000010.png",
        "step-00000024.png",
    ]


def test_a_rarm_learns_the_same_with_checkpointed_activations(
    rarm: Path, prepared: Prepared, token_cache: str, tmp_path: Path
) -> None:
    config = RARM.with_overrides(["activation_checkpointing=true"])
    run_training(
        config,
        TrainInputs(out=str(tmp_path / "run"), cache=token_cache, database=prepared.database),
    )
    losses, expected = ([row.loss for row in read_stats(run)] for run in (tmp_path / "run", rarm))
    assert np.allclose(losses, expected, rtol=1e-3)


def test_a_rarm_samples_by_text_and_unconditionally(
    rarm: Path, prepared: Prepared, tmp_path: Path
) -> None:
    model, database = open_model(rarm / "model"), RetrievalDatabase.open(prepared.database)
    queries = text_queries(database, ["a", "b"], 3) + proposed_queries(
        model, database, [5, 6], top_m=1.0, k=3
    )
    drawn = list(sample(model, database, queries, [5, 6, 5, 6], SETTINGS))
    alone = list(sample(model, database, queries[1:2], [6], SETTINGS))
    assert [item.pixels.shape for item in drawn] == [(32, 32, 3)] * 4
    assert np.abs(drawn[1].pixels.astype(int) - alone[0].pixels.astype(int)).max() <= 2
    write_samples(tmp_path, drawn, model, database, SETTINGS)
    assert len(json.loads((tmp_path / "samples.json").read_text())[0]["neighbors"]) == 3


def test_a_rarm_is_measured_on_held_out_photographs(
    rarm: Path, prepared: Prepared, token_cache: str
) -> None:
    model = open_model(rarm / "model")
    data = held_out_rows(model, token_cache, prepared.database)
    found = held_out_losses(model, data, num_draws=2).summary()
    assert found.loss_kind == "tokens"
    assert set(found.losses) == {"true", "shuffled", "none"}
    assert all(0 < interval.mean < 2 * np.log(64) for interval in found.losses.values())


def test_a_rarm_needs_a_cache_of_indices_and_says_how_to_make_one(
    prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(CacheError, match="not codebook indices") as caught:
        run_training(RARM, prepared.inputs(tmp_path / "run"))
    assert "--set content=indices" in caught.value.fix


def test_another_codebook_is_refused(prepared: Prepared, token_cache: str, tmp_path: Path) -> None:
    inputs = TrainInputs(out=str(tmp_path / "run"), cache=token_cache, database=prepared.database)
    with pytest.raises(CacheError, match="codebook_size is 64, the network's 1024") as caught:
        run_training(RARM.with_overrides(["objective.network.codebook_size=1024"]), inputs)
    assert caught.value.fix == "--set objective.network.codebook_size=64"


def test_a_killed_ldm_resumes_to_the_same_bits(
    ldm: Path, prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    config = _ldm_config(tiny_recipe)
    process = start_job(config, prepared.inputs(tmp_path / "run"))
    wait_for_step(process, tmp_path / "run", 9)
    kill_all(process, tmp_path / "run")
    run_training(config, prepared.inputs(tmp_path / "run"))
    weights = "model/network/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (ldm / weights).read_bytes()


def test_an_ldm_does_not_train_what_reads_neighbors(ldm: Path) -> None:
    moments = load_file(
        sorted((ldm / "checkpoints").iterdir())[-1] / "optimizer-exp_avg_sq.safetensors"
    )
    unread = [
        value for name, value in moments.items() if ".attn2.to_k." in name or ".attn2.to_v." in name
    ]
    assert unread
    assert not any(value.any() for value in unread)
    assert any(value.any() for value in moments.values())


def test_an_ldm_samples_without_a_database(ldm: Path, tmp_path: Path) -> None:
    model = open_model(ldm / "model")
    queries = proposed_queries(model, None, [3, 4], top_m=1.0, k=4)
    drawn = list(sample(model, None, queries, [3, 4], SETTINGS))
    assert not np.array_equal(drawn[0].pixels, drawn[1].pixels)
    write_samples(tmp_path, drawn, model, None, SETTINGS)
    row = json.loads((tmp_path / "samples.json").read_text())[0]
    assert (row["neighbors"], row["databases"], row["settings"]["guidance_scale"]) == ([], [], 1.0)


def test_an_ldm_cannot_be_asked_for_a_text(ldm: Path, prepared: Prepared) -> None:
    database = RetrievalDatabase.open(prepared.database)
    with pytest.raises(UsageError, match="trained on no condition"):
        sample(open_model(ldm / "model"), database, text_queries(database, ["a"], 3), [0], SETTINGS)


def test_a_model_with_neighbors_needs_a_database(rarm: Path) -> None:
    model = open_model(rarm / "model")
    with pytest.raises(UsageError, match="needs a database"):
        proposed_queries(model, None, [0], top_m=1.0, k=4)


def test_an_ldm_has_one_held_out_loss(ldm: Path, prepared: Prepared) -> None:
    model = open_model(ldm / "model")
    data = held_out_rows(model, prepared.cache, prepared.database)
    found = held_out_losses(model, data, num_draws=2).summary()
    assert list(found.losses) == ["none"]
    assert found.differences == {}


@pytest.mark.parametrize(
    ("name", "resolution", "dims"),
    [
        ("rdm-32", 32, ("cross_attention_dim",)),
        ("rdm-64", 64, ("cross_attention_dim", "vector_dim")),
    ],
)
def test_the_small_recipes_train(
    prepared: Prepared, tmp_path: Path, name: str, resolution: int, dims: tuple[str, ...]
) -> None:
    cache = _cache(prepared, tmp_path / "cache", resolution=resolution)
    config = recipe_config(name).with_overrides(
        [
            *SHORT,
            "max_steps=3",
            "grids_per_decade=0",
            "objective.conditions.neighbors.pool=6",
            *(f"objective.network.{dim}=16" for dim in dims),
        ]
    )
    inputs = TrainInputs(out=str(tmp_path / "run"), cache=cache, database=prepared.database)
    assert run_training(config, inputs).step == 3
    model = open_model(tmp_path / "run" / "model")
    assert model.objective.network.sample_size == resolution // 4  # pyright: ignore[reportAttributeAccessIssue]


def test_latents_of_another_size_than_the_network_draws_are_refused(
    prepared: Prepared, tmp_path: Path
) -> None:
    dims = ("objective.network.cross_attention_dim=16", "objective.network.vector_dim=16")
    config = recipe_config("rdm-64").with_overrides(
        [*SHORT, "objective.conditions.neighbors.pool=6", *dims]
    )
    with pytest.raises(CacheError, match="the latents are 8x8, the network draws 16 by 16"):
        run_training(config, prepared.inputs(tmp_path / "run"))
