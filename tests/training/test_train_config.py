from __future__ import annotations

import json
from pathlib import Path

import pytest

from rdm.errors import TrainingError, UsageError
from rdm.recipes import recipe_config
from rdm.training.config import TrainInputs
from rdm.training.job.rank import read_run, write_run


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        recipe_config("rdm-tiny").with_overrides([f"seed={seed}"])


def test_inputs_have_names_that_hold_everywhere_and_are_recorded_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    inputs = TrainInputs(
        out="run", cache="~/cache", database="s3://bucket/db", source="folder://a,folder:///b"
    )
    write_run(tmp_path / "run", recipe_config("rdm-tiny"), inputs)
    monkeypatch.chdir("/")
    assert read_run(tmp_path / "run")[1] == inputs
    assert inputs == TrainInputs(
        out=f"{tmp_path}/run",
        cache="/home/ada/cache",
        database="s3://bucket/db",
        source=f"folder://{tmp_path}/a,folder:///b",
    )


def test_a_run_with_a_setting_that_is_refused_now_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_run(tmp_path, recipe_config("rdm-tiny"), TrainInputs(out=str(tmp_path)))
    run = json.loads((tmp_path / "run.json").read_text())
    run["config"] |= {"compile": True, "zero_stage": 3}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(TrainingError, match="zero_stage below 3"):
        read_run(tmp_path)
