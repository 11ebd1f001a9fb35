from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rdm.cli.main import run
from rdm.errors import TrainingError
from rdm.recipes import recipe_config
from rdm.storage.locks import lock_file
from rdm.training.config import TrainInputs
from rdm.training.job.job_errors import ERROR_FILE
from rdm.training.job.rank import write_run
from rdm.training.job.status import LOCK, means, read_status, sparkline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run that stopped at step 40 of 100."""
    write_run(
        tmp_path,
        recipe_config("rdm-tiny").with_overrides(["max_steps=100"]),
        TrainInputs(out=str(tmp_path)),
    )
    rows = [
        {
            "step": step,
            "loss": 1 / step,
            "seconds_per_step": 0.5,
            "samples_per_second": 64.0,
            "learning_rate": 1e-3,
        }
        for step in range(10, 41, 10)
    ]
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_run_that_no_job_holds_has_stopped(folder: Path) -> None:
    found = read_status(folder)
    assert (found.health, found.step, found.max_steps, found.seconds_left) == (
        "stopped",
        40,
        100,
        None,
    )
    assert found.losses == (0.1, 0.05, 1 / 30, 0.025)


def test_a_run_that_a_job_holds_is_training_and_has_time_left(folder: Path) -> None:
    with lock_file(folder / LOCK, "trains"):
        found = read_status(folder)
    assert (found.health, found.seconds_left) == ("training", 30.0)


def test_a_job_without_statistics_is_starting(folder: Path) -> None:
    (folder / "stats.jsonl").unlink()
    with lock_file(folder / LOCK, "trains"):
        assert read_status(folder).health == "starting"


def test_a_failed_run_says_why(folder: Path) -> None:
    (folder / ERROR_FILE).write_text(
        json.dumps({"kind": "TrainingError", "what": "so it is", "where": "", "fix": ""})
    )
    found = read_status(folder)
    assert (found.health, found.error) == ("failed", "so it is")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run here"):
        read_status(tmp_path)


def test_the_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0.0, math.nan, 7.0]) == "▁x█"
    assert sparkline([]) == ""


def test_many_values_become_means_of_equal_parts() -> None:
    assert means([1, 3, 5, 7], 2) == [2, 6]
    assert means([1, 2], 40) == [1, 2]
    assert means([], 40) == []


def test_the_command_prints_a_table_and_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--run", str(folder)]) == 0
    assert "40 of 100 (40%)" in capsys.readouterr().out
    assert run(["status", "--run", str(folder), "--watch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["health"] == "stopped"
