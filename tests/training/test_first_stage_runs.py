"""First stages under the launcher: killed and resumed, on other ranks and ZeRO stages, collapsed
and recovered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from training_jobs import kill_all, start_job, wait_for_step

from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.recipes import recipe_config
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.job.launch import run_training
from rdm.training.stats import read_stats

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_WEIGHTS = "diffusion_pytorch_model.safetensors"

Inputs = Callable[[Path], TrainInputs]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes]) -> Inputs:
    """Return a maker of a run's inputs: two dozen photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(24):
        (folder / f"p{number:02d}.jpg").write_bytes(encoded(number))
    return lambda out: TrainInputs(out=str(out), source=f"folder://{folder}")


@pytest.fixture(scope="module")
def recipe() -> TrainConfig:
    """`autoencoder-vq-f4`, tiny, with every term; the discriminator joins at the fourth step."""
    return recipe_config("autoencoder-vq-f4").with_overrides(
        [
            "max_steps=8",
            "batch_size=4",
            "checkpoint_every=2",
            "log_every=1",
            "num_ranks=2",
            "warmup_steps=2",
            "lr_schedule=constant",
            "grids_per_decade=1",
            "objective.start=random",
            "objective.network.block_out_channels=[8, 8, 16]",
            "objective.network.sample_size=32",
            "objective.network.codebook_size=32",
            "objective.photographs.image_size=32",
            "objective.photographs.held_out_fraction=0.3",
            "objective.adversarial.channels=8",
            "objective.adversarial.start_step=4",
        ]
    )


def losses(out: Path) -> np.ndarray:
    return np.array([row.loss for row in read_stats(out)])


@pytest.fixture(scope="module")
def straight(inputs: Inputs, recipe: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run_training(recipe, inputs(out))
    return out


def test_a_killed_run_resumes_to_the_same_bits(
    straight: Path, inputs: Inputs, recipe: TrainConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start_job(recipe, inputs(out))
    wait_for_step(process, out, 5)
    kill_all(process, out)
    assert not (out / "model").exists()
    run_training(recipe, inputs(out))
    assert (out / "model" / _WEIGHTS).read_bytes() == (straight / "model" / _WEIGHTS).read_bytes()
    assert np.array_equal(losses(out), losses(straight))


def test_the_discriminator_joins_at_its_step_and_is_kept_out_of_the_model(straight: Path) -> None:
    assert ["discriminator" in row.numbers() for row in read_stats(straight)] == [False] * 4 + [
        True
    ] * 4
    assert load_autoencoder(str(straight / "model")).codebook is not None
    saved = load_file(straight / "checkpoints" / "step-00000008" / "weights.safetensors")
    assert any(name.startswith("discriminator.") for name in saved)


def test_a_grid_shows_photographs_over_reconstructions(straight: Path) -> None:
    with Image.open(straight / "grids" / "step-00000008.png") as grid:
        assert grid.size == (4 * 34 - 2, 4 * 66 - 2)


@pytest.mark.parametrize(
    ("stage", "ranks", "precision"),
    [(0, 1, "fp32"), (1, 2, "fp32"), (2, 1, "fp32"), (3, 2, "fp32"), (3, 1, "bf16")],
)
def test_other_ranks_and_zero_stages_learn_the_same(
    inputs: Inputs, recipe: TrainConfig, tmp_path: Path, stage: int, ranks: int, precision: str
) -> None:
    """A row that one micro-batch left out and another took is pulled alike, whoever computes
    them."""
    settings = [
        "optimizer=adamw",
        "micro_batch_size=2",
        "grids_per_decade=0",
        f"precision={precision}",
    ]
    adamw = recipe.with_overrides(settings)
    run_training(adamw.with_overrides(["zero_stage=0"]), inputs(tmp_path / "two"))
    other = adamw.with_overrides([f"zero_stage={stage}", f"num_ranks={ranks}"])
    run_training(other, inputs(tmp_path / "other"))
    assert np.allclose(
        losses(tmp_path / "other"),
        losses(tmp_path / "two"),
        rtol=1e-3 if precision == "fp32" else 0.02,
    )


def test_a_codebook_that_starts_collapsed_comes_back_into_use(
    inputs: Inputs, recipe: TrainConfig, tmp_path: Path
) -> None:
    """Rows of a random start lie together, far from what the encoder says: goes on from such a
    first stage."""
    collapsed = tmp_path / "collapsed"
    run_training(
        recipe.with_overrides(["max_steps=1", "num_ranks=1", "grids_per_decade=0"]),
        inputs(collapsed),
    )
    model = load_autoencoder(str(collapsed / "model")).model
    model.quantize.embedding.weight.data.fill_(3.0)
    model.save_pretrained(str(tmp_path / "start"), safe_serialization=True)
    settings = [
        "max_steps=150",
        "num_ranks=1",
        "log_every=10",
        "grids_per_decade=0",
        "checkpoint_every=150",
    ]
    terms = [
        "learning_rate=0.005",
        "objective.perceptual.weight=0",
        "objective.adversarial.weight=0",
    ]
    longer = recipe.with_overrides([*settings, *terms, f"objective.start={tmp_path / 'start'}"])
    run_training(longer, inputs(tmp_path / "run"))
    used = [row.numbers()["codebook_used"] for row in read_stats(tmp_path / "run")]
    assert used[0] == 1 / 32
    assert np.mean(used[-5:]) > 8 / 32
