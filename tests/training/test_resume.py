"""What a run remembers: every ZeRO stage, killed and resumed, and resumed by another number of
ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from training_jobs import Prepared, kill_all, start_job, wait_for_step, weights_of

from rdm.training.config import TrainConfig
from rdm.training.job.launch import run_training
from rdm.training.stats import read_stats

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SHORT = [
    "max_steps=12",
    "checkpoint_every=4",
    "grids_per_decade=0",
    "precision=fp32",
    "lr_schedule=constant",
]


def _losses(out: Path) -> NDArray[np.float64]:
    return np.array([row.loss for row in read_stats(out)])


def _exported(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "network" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def straight(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of two ranks under ZeRO 1 that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run_training(tiny_recipe.with_overrides(SHORT), prepared.inputs(out))
    return out


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_killed_run_resumes_to_the_same_bits_under_every_zero_stage(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path, stage: int
) -> None:
    config = tiny_recipe.with_overrides([*SHORT, f"zero_stage={stage}", "more_ema_decays=[0.3]"])
    run_training(config, prepared.inputs(tmp_path / "straight"))
    out = tmp_path / "killed"
    process = start_job(config, prepared.inputs(out))
    wait_for_step(process, out, 6)
    kill_all(process, out)
    assert not (out / "model").exists()
    run_training(config, prepared.inputs(out))
    assert weights_of(out) == weights_of(tmp_path / "straight")
    assert np.array_equal(_losses(out), _losses(tmp_path / "straight"))
    second = "model-ema-0.3/network/diffusion_pytorch_model.safetensors"
    assert (out / second).read_bytes() == (tmp_path / "straight" / second).read_bytes()
    assert (out / second).read_bytes() != weights_of(out)


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (3, 2)])
def test_another_number_of_ranks_and_stage_goes_on_with_the_same_samples(
    straight: Path,
    prepared: Prepared,
    tiny_recipe: TrainConfig,
    tmp_path: Path,
    stage: int,
    ranks: int,
) -> None:
    out = tmp_path / "run"
    run_training(tiny_recipe.with_overrides([*SHORT, "max_steps=8"]), prepared.inputs(out))
    other = tiny_recipe.with_overrides([*SHORT, f"num_ranks={ranks}", f"zero_stage={stage}"])
    run_training(other, prepared.inputs(out))
    assert np.array_equal(_losses(out)[:8], _losses(straight)[:8])
    assert np.allclose(_losses(out), _losses(straight), rtol=1e-4)
    found, expected = _exported(out), _exported(straight)
    assert all(np.allclose(found[name], expected[name], atol=2e-4) for name in expected)


def test_accumulated_gradients_equal_those_of_more_ranks(
    straight: Path, prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    alone = tiny_recipe.with_overrides([*SHORT, "num_ranks=1", "micro_batch_size=2"])
    run_training(alone, prepared.inputs(tmp_path / "run"))
    assert np.allclose(_losses(tmp_path / "run"), _losses(straight), rtol=1e-4)


@pytest.mark.parametrize("setting", ["activation_checkpointing=true", "channels_last=true"])
def test_how_activations_are_kept_and_laid_out_changes_no_loss(
    straight: Path, prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path, setting: str
) -> None:
    run_training(tiny_recipe.with_overrides([*SHORT, setting]), prepared.inputs(tmp_path / "run"))
    assert np.allclose(_losses(tmp_path / "run"), _losses(straight), rtol=1e-3)


@pytest.mark.long
def test_a_compiled_network_learns_the_same(
    straight: Path, prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    run_training(
        tiny_recipe.with_overrides([*SHORT, "compile=true"]), prepared.inputs(tmp_path / "run")
    )
    assert np.allclose(_losses(tmp_path / "run"), _losses(straight), rtol=1e-3)
