"""What starting a job decides and says, with machines that fail before they train."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from training_jobs import Prepared

from rdm.errors import TrainingError
from rdm.progress import progress_to
from rdm.training.checkpoints import FORMAT
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.engine.training_device import training_device
from rdm.training.job.devices import DEVICES
from rdm.training.job.hostfile import Cluster, Machine
from rdm.training.job.launch import LOG, failure, run_training
from rdm.training.job.rank import write_run
from rdm.training.job.status import read_status


@dataclass
class Seen:
    """A progress sink that keeps what it is told: where stages start, and what is done."""

    started: list[tuple[str, int]]
    done: list[int]

    def start(self, stage: str, total: int, unit: str, done: int) -> None:
        """See ProgressSink."""
        self.started.append((stage, done))

    def update(self, done: int, note: str) -> None:
        """See ProgressSink."""
        self.done.append(done)

    def finish(self) -> None:
        """See ProgressSink."""


@pytest.fixture
def broken() -> Cluster:
    """A machine that says what is wrong with it, and ends."""
    return Cluster(
        machines=(Machine(host="far", slots=2),),
        remote_shell="sh -c 'echo DiskError on {host}; exit 3'",
    )


def exported(out: Path, config: TrainConfig, steps: int) -> None:
    """Leave the model and the statistics of a run of so many steps."""
    (out / "model").mkdir(parents=True)
    text = config.model_copy(update={"max_steps": steps}).model_dump_json()
    (out / "model" / "train_config.json").write_text(text)
    rows = [{"step": step, "loss": 1.0, "samples_per_second": 1.0} for step in range(1, steps + 1)]
    (out / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_finished_run_starts_no_job(
    prepared: Prepared, tiny_recipe: TrainConfig, broken: Cluster, tmp_path: Path
) -> None:
    exported(tmp_path, tiny_recipe, tiny_recipe.max_steps)
    assert (
        run_training(tiny_recipe, prepared.inputs(tmp_path), broken).step == tiny_recipe.max_steps
    )


def test_a_model_of_fewer_steps_is_no_result_though_the_statistics_have_all(
    prepared: Prepared, tiny_recipe: TrainConfig, broken: Cluster, tmp_path: Path
) -> None:
    exported(tmp_path, tiny_recipe, 4)
    longer = tiny_recipe.with_overrides(["max_steps=8"])
    with open(tmp_path / "stats.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 1.0, "samples_per_second": 1.0}\n')
    write_run(tmp_path, longer, prepared.inputs(tmp_path))
    assert read_status(tmp_path).health == "stopped"
    with pytest.raises(TrainingError, match="ended with code 3"):
        run_training(longer, prepared.inputs(tmp_path), broken)


def test_fewer_steps_than_were_done_are_refused(
    prepared: Prepared, tiny_recipe: TrainConfig, broken: Cluster, tmp_path: Path
) -> None:
    exported(tmp_path, tiny_recipe, 6)
    with pytest.raises(TrainingError, match="has done 6 steps, more than max_steps, which is 4"):
        run_training(tiny_recipe.with_overrides(["max_steps=4"]), prepared.inputs(tmp_path), broken)


def test_a_job_that_ended_by_itself_has_failed_and_says_why(
    prepared: Prepared, tiny_recipe: TrainConfig, broken: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="DiskError on far"):
        run_training(tiny_recipe, prepared.inputs(tmp_path), broken)
    found = read_status(tmp_path)
    assert (found.health, found.error) == (
        "failed",
        "the training job ended with code 3: DiskError on far",
    )


def test_progress_starts_at_the_last_checkpoint_and_not_where_statistics_end(
    prepared: Prepared, tiny_recipe: TrainConfig, broken: Cluster, tmp_path: Path
) -> None:
    exported(tmp_path, tiny_recipe, 4)
    with open(tmp_path / "stats.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 1.0, "samples_per_second": 1.0}\n')
    checkpoint = tmp_path / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    state = {"format": FORMAT, "files": {}, "step": 4, "mean_loss": 1.0, "micro_batch_size": 1}
    state |= {"provenance": {}, "optimizer_counts": {}, "world_size": 1, "zero_stage": 1}
    state |= {"ema_updates": 4, "loss_scale": None, "config_digest": "", "config": {}}
    (checkpoint / "state.json").write_text(json.dumps(state))
    sink = Seen([], [])
    with progress_to(sink), suppress(TrainingError):
        run_training(tiny_recipe, prepared.inputs(tmp_path), broken)
    assert sink == Seen([("train", 4)], [])


def test_an_earlier_starts_error_is_not_that_of_this_one(tmp_path: Path) -> None:
    earlier = "ValueError: mended since\n"
    (tmp_path / LOG).write_text(f"{earlier}no room\n")
    assert failure(tmp_path, 1, len(earlier)).what == "the training job ended with code 1: no room"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (247, "was killed by signal 9, most likely for want of memory"),
        (-11, "was ended by signal 11: an Error"),
        (137, "was killed by signal 9, most likely for want of memory"),
        (255, "ended with code 255: an Error"),
        (1, "ended with code 1: an Error"),
    ],
)
def test_a_code_that_stands_for_a_signal_names_it(tmp_path: Path, code: int, words: str) -> None:
    (tmp_path / LOG).write_text("an Error\n")
    assert failure(tmp_path, code, 0).what == f"the training job {words}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_machines_whose_shell_starts_elsewhere_find_relative_inputs(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(prepared.cache).parent)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = Cluster(
        machines=(Machine(host="elsewhere", slots=1),),
        master_address="127.0.0.1",
        remote_shell=f"env -C {tmp_path} X={{host}}",
    )
    inputs = TrainInputs(out=str(tmp_path / "run"), cache="cache", database="db")
    config = tiny_recipe.with_overrides(["max_steps=1", "num_ranks=1", "grids_per_decade=0"])
    assert run_training(config, inputs, cluster).step == 1
    assert (tmp_path / "run" / DEVICES / "0").read_text() == training_device(config).type
