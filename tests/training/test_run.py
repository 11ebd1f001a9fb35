"""Training for real: two ranks under the deepspeed launcher, killed and resumed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from training_jobs import Prepared, kill_all, ranks_of, start_job, wait_for_step, weights_of

from rdm.database import RetrievalDatabase
from rdm.errors import CacheError, TrainingError
from rdm.sampling import open_model
from rdm.training.checkpoints import Checkpoints
from rdm.training.config import TrainConfig
from rdm.training.job.launch import run_training
from rdm.training.job.status import read_status
from rdm.training.stats import read_stats

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def straight(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run_training(tiny_recipe, prepared.inputs(out))
    return out


def test_every_step_is_recorded(straight: Path, tiny_recipe: TrainConfig) -> None:
    stats = read_stats(straight)
    assert [row.step for row in stats] == list(range(1, tiny_recipe.max_steps + 1))
    assert all(0 < row.loss < 100 for row in stats)


def test_the_result_opens_as_a_model(straight: Path, prepared: Prepared) -> None:
    model = open_model(straight / "model")
    assert model.config.network.sample_shape == (4, 8, 8)
    assert model.info.database is not None
    assert model.info.database.version == RetrievalDatabase.open(prepared.database).version.number


def test_a_finished_run_returns_at_once(
    straight: Path, prepared: Prepared, tiny_recipe: TrainConfig
) -> None:
    before = (straight / "launcher.log").stat().st_size
    assert run_training(tiny_recipe, prepared.inputs(straight)).step == tiny_recipe.max_steps
    assert (straight / "launcher.log").stat().st_size == before


def test_a_killed_run_resumes_to_the_same_bits(
    straight: Path, prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start_job(tiny_recipe, prepared.inputs(out))
    wait_for_step(process, out, 15)
    kill_all(process, out)
    assert not (out / "model").exists()
    run_training(tiny_recipe, prepared.inputs(out))
    assert weights_of(out) == weights_of(straight)
    assert [row.loss for row in read_stats(out)] == [row.loss for row in read_stats(straight)]


def test_ranks_end_with_the_process_that_launched_them(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = tiny_recipe.with_overrides(["max_steps=100000", "log_every=10"])
    process = start_job(config, prepared.inputs(out))
    wait_for_step(process, out, 10)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while ranks_of(out):
        assert time.monotonic() < deadline, "ranks outlived the process that launched them"
        time.sleep(0.2)
    assert read_stats(out)[-1].step < config.max_steps


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    straight: Path, tiny_recipe: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(straight, tiny_recipe)
    newest = checkpoints.complete()[-1]
    path = newest.path / "weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    older = checkpoints.newest()
    assert older is not None
    assert older.step < newest.step
    assert "weights.safetensors is damaged" in caplog.text
    path.write_bytes(whole[:-1])
    assert newest.step not in [found.step for found in checkpoints.complete()]
    path.write_bytes(whole)
    assert checkpoints.complete()[-1].step == newest.step


def test_a_checkpoint_is_plain_safetensors_with_configuration_and_database_version(
    straight: Path, tiny_recipe: TrainConfig, prepared: Prepared
) -> None:
    path = Checkpoints(straight, tiny_recipe).complete()[-1].path
    state = json.loads((path / "state.json").read_text())
    assert state["config"]["objective"]["network"]["block_out_channels"] == [16, 32]
    assert (
        state["provenance"]["database"]["version"]
        == RetrievalDatabase.open(prepared.database).version.number
    )
    weights, average = (
        load_file(path / f"{name}.safetensors") for name in ("weights", "ema-0.995")
    )
    assert set(weights) == set(average)
    assert set(load_file(path / "optimizer-exp_avg.safetensors")) == set(weights)
    exported = load_file(straight / "model" / "network" / "diffusion_pytorch_model.safetensors")
    assert all(
        (average[f"generator.network.unet.{name}"] == value).all()
        for name, value in exported.items()
    )


def test_the_newest_checkpoints_and_the_best_are_kept(
    straight: Path, tiny_recipe: TrainConfig
) -> None:
    kept = Checkpoints(straight, tiny_recipe).complete()
    steps = [checkpoint.step for checkpoint in kept]
    assert steps[-2:] == [50, 60]
    assert len(steps) <= 3


def test_grids_are_drawn_at_steps_in_equal_ratios(straight: Path) -> None:
    assert sorted(path.name for path in (straight / "grids").iterdir()) == [
        "step-00000010.png",
        "step-00000060.png",
    ]


def test_the_status_of_a_finished_run(straight: Path) -> None:
    found = read_status(straight)
    assert (found.health, found.step, found.checkpoint_step) == ("finished", 60, 60)
    assert len(found.sparkline) == 40


def test_a_folder_with_another_run_is_refused(
    straight: Path, prepared: Prepared, tiny_recipe: TrainConfig
) -> None:
    with pytest.raises(TrainingError, match="another configuration"):
        run_training(tiny_recipe.with_overrides(["seed=5"]), prepared.inputs(straight))


def test_an_error_in_a_rank_reaches_the_user(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="cannot be shared by 2 ranks"):
        run_training(
            tiny_recipe.with_overrides(["batch_size=3"]), prepared.inputs(tmp_path / "run")
        )


@pytest.mark.parametrize("stage", [0, 1])
def test_weights_that_are_not_finite_are_never_saved(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path, stage: int
) -> None:
    # The first loss and its gradients are finite; the step is too long for any number.
    settings = ["learning_rate=1e39", "warmup_steps=0", "precision=fp32", "checkpoint_every=1"]
    config = tiny_recipe.with_overrides([*settings, f"zero_stage={stage}"])
    with pytest.raises(TrainingError, match="the weights are not finite after step 1"):
        run_training(config, prepared.inputs(tmp_path / "run"))
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_the_gradient_norm_is_told_under_every_zero_stage(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    norms = []
    for stage in range(4):
        config = tiny_recipe.with_overrides(
            [f"zero_stage={stage}", "max_steps=2", "precision=fp32", "log_every=1"]
        )
        run_training(config, prepared.inputs(tmp_path / str(stage)))
        norms.append([row.gradient_norm for row in read_stats(tmp_path / str(stage))])
    assert np.allclose(norms, norms[1], rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    config = tiny_recipe.with_overrides(["learning_rate=1e30", "gradient_clip=0", "precision=fp32"])
    with pytest.raises(TrainingError, match="not finite"):
        run_training(config, prepared.inputs(tmp_path / "run"))


def test_more_neighbors_than_are_stored_are_refused_before_a_job_starts(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    config = tiny_recipe.with_overrides(["objective.conditions.neighbors.pool=7"])
    with pytest.raises(CacheError, match="training takes 7 neighbors, but 6 are stored"):
        run_training(config, prepared.inputs(tmp_path / "run"))
