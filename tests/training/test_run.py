"""Training for real: two ranks under the deepspeed launcher, killed and resumed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rdm.database import RetrievalDatabase
from rdm.errors import CacheError, TrainingError
from rdm.sampling import RetrievalDiffusionModel
from rdm.training.checkpoints import Checkpoints
from rdm.training.launch import run_training
from rdm.training.loop import read_stats, run_digest
from rdm.training.recipes import TrainConfig, TrainInputs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_TRAIN = """
import json, sys
from rdm.training.launch import run_training
from rdm.training.recipes import TrainConfig, TrainInputs
config, inputs = json.loads(sys.argv[1])
run_training(TrainConfig.model_validate(config), TrainInputs.model_validate(inputs))
"""


@pytest.fixture(scope="module")
def straight(prepared, tiny_recipe, tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run_training(tiny_recipe, prepared.inputs(out))
    return out


def _weights(out: Path) -> bytes:
    return (out / "model" / "denoiser" / "diffusion_pytorch_model.safetensors").read_bytes()


def _start(config: TrainConfig, inputs: TrainInputs) -> subprocess.Popen[bytes]:
    arguments = json.dumps([config.model_dump(mode="json"), inputs.model_dump(mode="json")])
    return subprocess.Popen([sys.executable, "-c", _TRAIN, arguments], start_new_session=True)


def _wait_for_step(process: subprocess.Popen[bytes], out: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while not any(row["step"] >= step for row in read_stats(out)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _kill_all(process: subprocess.Popen[bytes], out: Path) -> None:
    """Kill the launching process and the ranks at once, as a machine that loses power would."""
    for pid in [process.pid, *_processes(out)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _processes(out: Path) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"rdm.training.worker.*{out}"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_every_step_is_recorded(straight, tiny_recipe):
    stats = read_stats(straight)
    assert [row["step"] for row in stats] == list(range(1, tiny_recipe.max_steps + 1))
    assert all(0 < row["loss"] < 100 for row in stats)


def test_the_result_opens_as_a_model(straight, prepared):
    model = RetrievalDiffusionModel.open(straight / "model")
    assert model.latent_shape == (4, 8, 8)
    assert model.info["database"]["version"] == RetrievalDatabase.open(prepared.database).version.number


def test_a_finished_run_returns_at_once(straight, prepared, tiny_recipe):
    before = (straight / "launcher.log").stat().st_size
    assert run_training(tiny_recipe, prepared.inputs(straight))["step"] == tiny_recipe.max_steps
    assert (straight / "launcher.log").stat().st_size == before


def test_a_killed_run_resumes_to_the_same_bits(straight, prepared, tiny_recipe, tmp_path):
    out = tmp_path / "run"
    process = _start(tiny_recipe, prepared.inputs(out))
    _wait_for_step(process, out, 15)
    _kill_all(process, out)
    assert not (out / "model").exists()
    run_training(tiny_recipe, prepared.inputs(out))
    assert _weights(out) == _weights(straight)
    assert [row["loss"] for row in read_stats(out)] == [row["loss"] for row in read_stats(straight)]


def test_ranks_end_with_the_process_that_launched_them(prepared, tiny_recipe, tmp_path):
    out = tmp_path / "run"
    config = tiny_recipe.with_overrides(["max_steps=100000", "log_every=10"])
    process = _start(config, prepared.inputs(out))
    _wait_for_step(process, out, 10)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while _processes(out):
        assert time.monotonic() < deadline, "ranks outlived the process that launched them"
        time.sleep(0.2)
    assert read_stats(out)[-1]["step"] < config.max_steps


def test_a_damaged_checkpoint_is_passed_over(straight, tiny_recipe):
    checkpoints = Checkpoints(straight, run_digest(tiny_recipe), keep=2)
    newest = checkpoints.complete()[-1]
    whole = (newest.path / "ema.safetensors").read_bytes()
    (newest.path / "ema.safetensors").write_bytes(whole[:-1])
    assert newest.step not in [found.step for found in checkpoints.complete()]
    (newest.path / "ema.safetensors").write_bytes(whole)
    assert checkpoints.complete()[-1].step == newest.step


def test_a_folder_with_another_run_is_refused(straight, prepared, tiny_recipe):
    with pytest.raises(TrainingError, match="another configuration"):
        run_training(tiny_recipe.with_overrides(["seed=5"]), prepared.inputs(straight))


def test_an_error_in_a_rank_reaches_the_user(prepared, tiny_recipe, tmp_path):
    with pytest.raises(TrainingError, match="cannot be shared by 2 ranks"):
        run_training(tiny_recipe.with_overrides(["batch_size=3"]), prepared.inputs(tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_the_run(prepared, tiny_recipe, tmp_path):
    config = tiny_recipe.with_overrides(["learning_rate=1e30", "gradient_clip=0", "precision=fp32"])
    with pytest.raises(TrainingError, match="not finite"):
        run_training(config, prepared.inputs(tmp_path / "run"))


def test_more_neighbors_than_are_stored_are_refused_before_a_job_starts(prepared, tiny_recipe, tmp_path):
    with pytest.raises(CacheError, match="training takes 7 neighbors, but 6 are stored"):
        run_training(tiny_recipe.with_overrides(["objective.conditioning.pool=7"]), prepared.inputs(tmp_path / "run"))
