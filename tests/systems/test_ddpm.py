"""`ddpm-tiny` by the command line: pixels cached, trained, killed and resumed, measured, sampled
both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_jobs import kill_all, start_job, wait_for_step, weights_of

from rdm.cli.main import run
from rdm.evaluation.heldout import held_out_losses, held_out_rows
from rdm.recipes import recipe_config
from rdm.sampling import open_model
from rdm.training.config import TrainInputs
from rdm.training.stats import read_stats

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SETTINGS = (
    "max_steps=12",
    "batch_size=4",
    "checkpoint_every=4",
    "log_every=1",
    "num_ranks=2",
    "precision=fp32",
    "grids_per_decade=1",
    "objective.network.block_out_channels=[16, 32]",
    "objective.network.attention_levels=[false, true]",
    "objective.network.layers_per_block=1",
    "objective.network.norm_num_groups=8",
    "objective.network.sample_size=16",
    "objective.head.schedule.num_timesteps=50",
    "objective.held_out_fraction=0.5",
)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes]) -> str:
    """A cache of the pixels of sixteen photographs, made by the command."""
    root = tmp_path_factory.mktemp("ddpm")
    (root / "photos").mkdir()
    for number in range(16):
        (root / "photos" / f"{number:02d}.jpg").write_bytes(encoded(number))
    queries = f"folder://{root}/photos"
    command = [
        "cache",
        "build",
        "--queries",
        queries,
        "--autoencoder",
        "none",
        "--out",
        str(root / "pixels"),
    ]
    assert run([*command, "--set", "resolution=16", "--dask", "inline"]) == 0
    return str(root / "pixels")


@pytest.fixture(scope="module")
def trained(pixels: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, started by the command: neither autoencoder nor database."""
    out = tmp_path_factory.mktemp("straight") / "run"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    assert (
        run(["train", "--recipe", "ddpm-tiny", "--cache", pixels, "--out", str(out), *settings])
        == 0
    )
    return out


def test_the_command_trains_on_pixels_alone(trained: Path) -> None:
    losses = [row.loss for row in read_stats(trained)]
    assert len(losses) == 12
    assert all(0 < loss < 3 for loss in losses)
    described = json.loads((trained / "model" / "model.json").read_text())
    assert (described["autoencoder"], described["database"], described["resolution"]) == (
        None,
        None,
        16,
    )
    with Image.open(trained / "grids" / "step-00000012.png") as grid:
        assert grid.mode == "RGB"


def test_a_killed_run_resumes_to_the_same_bits(trained: Path, pixels: str, tmp_path: Path) -> None:
    config = recipe_config("ddpm-tiny").with_overrides(SETTINGS)
    inputs = TrainInputs(out=str(tmp_path / "run"), cache=pixels)
    process = start_job(config, inputs)
    wait_for_step(process, tmp_path / "run", 6)
    kill_all(process, tmp_path / "run")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [
        "train",
        "--recipe",
        "ddpm-tiny",
        "--cache",
        pixels,
        "--out",
        str(tmp_path / "run"),
        *settings,
    ]
    assert run(command) == 0
    assert weights_of(tmp_path / "run") == weights_of(trained)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_the_command_draws_without_a_database(trained: Path, tmp_path: Path, sampler: str) -> None:
    command = ["sample", "--model", str(trained / "model"), "--unconditional", "--seeds", "0-2"]
    settings = ["--set", f"sampler={sampler}", "--set", "num_steps=5"]
    assert run([*command, "--out", str(tmp_path / "samples"), *settings]) == 0
    rows = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert [(row["seed"], row["neighbors"], row["settings"]["sampler"]) for row in rows] == [
        (seed, [], sampler) for seed in range(3)
    ]
    with Image.open(tmp_path / "samples" / "00000.png") as picture:
        assert picture.size == (16, 16)


def test_held_out_photographs_are_measured_once_because_nothing_conditions(
    trained: Path, pixels: str
) -> None:
    model = open_model(trained / "model")
    found = held_out_losses(model, held_out_rows(model, pixels, None), num_draws=2)
    assert found.conditions == ("none",)
    assert (found.losses > 0).all()


def test_a_class_is_heard(tmp_path: Path) -> None:
    """Pictures of two colors, each in its folder: after two hundred steps a class draws its own."""
    for number in range(80):
        name, color = (("red", (220, 30, 30)), ("blue", (30, 60, 220)))[number % 2]
        noise = np.random.default_rng(number).normal(0, 12, (16, 16, 3))
        pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
        (tmp_path / "colors" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "colors" / name / f"{number}.png")
    cache, out = str(tmp_path / "cache"), str(tmp_path / "run")
    build = ["cache", "build", "--queries", f"folder://{tmp_path}/colors", "--autoencoder", "none"]
    assert run([*build, "--set", "resolution=16", "--out", cache, "--dask", "inline"]) == 0
    assert run(["cache", "annotate", "--cache", cache, "--with", "classes"]) == 0
    settings = (
        *(one for one in SETTINGS if not one.startswith(("max_steps", "batch_size", "num_ranks"))),
        "max_steps=200",
        "batch_size=16",
        "num_ranks=1",
        "objective.head.prediction_type=v",
        "objective.network.num_classes=2",
        "objective.conditions.label.num_classes=2",
    )
    train = ["train", "--recipe", "ddpm-tiny", "--cache", cache, "--out", out]
    assert run([*train, *(word for one in settings for word in ("--set", one))]) == 0

    # What is held out is predicted better with its class than with another's.
    model = open_model(f"{out}/model")
    assert model.class_names == ("blue", "red")
    losses = held_out_losses(model, held_out_rows(model, cache, None), num_draws=8)
    assert losses.differences["shuffled"].low > 0

    # Pictures have the color of their class.
    drawn = str(tmp_path / "drawn")
    ask = ["sample", "--model", f"{out}/model", "--out", drawn, "--seeds", "0-3", "--guidance", "2"]
    asked = ["--class", "red", "--class", "blue", "--set", "num_steps=25"]
    assert run([*ask, *asked]) == 0
    files = sorted(Path(drawn).glob("[0-9]*.png"))
    means = np.stack([np.asarray(Image.open(file)).mean(axis=(0, 1)) for file in files])
    assert (means[:4, 0] > means[:4, 2] + 50).all()
    assert (means[4:, 2] > means[4:, 0] + 50).all()

    # Another class, or a text, is refused.
    assert run([*ask, "--class", "green"]) == 2
    assert run([*ask, "--text", "red"]) == 2
