from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.errors import MissingDependencyError
from rdm.recipes import recipe_config
from rdm.training.stats import StatsLog, StatsRow, last_stats, read_stats, stats_of

ROW = {"loss": 0.5, "learning_rate": 1e-3, "gradient_norm": None}


def test_lines_beyond_the_step_from_which_a_run_goes_on_are_dropped(tmp_path: Path) -> None:
    config = recipe_config("rdm-tiny")
    log = StatsLog(tmp_path, config, 0)
    for step in (1, 2, 3):
        log.log(StatsRow.model_validate({"step": step, **ROW}))
    resumed = StatsLog(tmp_path, config, 2)
    resumed.log(StatsRow.model_validate({"step": 3, "loss": 0.25}))
    assert [row.loss for row in read_stats(tmp_path)] == [0.5, 0.5, 0.25]


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "stats.jsonl").write_text('{"step": 1}\n{"ste')
    assert read_stats(tmp_path) == [StatsRow(step=1)]


def test_dropping_lines_leaves_the_old_ones_when_it_is_interrupted(
    tmp_path: Path,
) -> None:
    config = recipe_config("rdm-tiny")
    StatsLog(tmp_path, config, 0).log(StatsRow.model_validate({"step": 1, **ROW}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))  # no file may get longer
    try:
        with pytest.raises(OSError, match="File too large"):
            StatsLog(tmp_path, config, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [row.to_json() for row in read_stats(tmp_path)] == [{"step": 1, **ROW}]


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    StatsLog(tmp_path, recipe_config("rdm-tiny"), 0).log(
        StatsRow.model_validate({"step": 1, **ROW, "gradient_norm": math.inf})
    )
    line = (tmp_path / "stats.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, **ROW}


def test_the_line_of_a_step_is_found(tmp_path: Path) -> None:
    (tmp_path / "stats.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 4, "loss": 1}\n')
    assert stats_of(tmp_path, 1) == StatsRow(step=1, loss=2)
    assert stats_of(tmp_path, 2) == StatsRow(step=2)


def test_the_last_line_is_found_without_reading_the_others(tmp_path: Path) -> None:
    assert last_stats(tmp_path) is None
    (tmp_path / "stats.jsonl").write_text(
        "".join(f'{{"step": {step}}}\n' for step in range(10_000)) + '{"st'
    )
    assert last_stats(tmp_path) == StatsRow(step=9999)
    (tmp_path / "stats.jsonl").write_text('{"st')
    assert last_stats(tmp_path) is None


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "grid.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_number_and_picture(tmp_path: Path, picture: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = StatsLog(
        tmp_path, recipe_config("rdm-tiny").with_overrides(['trackers=["tensorboard"]']), 0
    )
    log.log(StatsRow.model_validate({"step": 1, **ROW}))
    log.log(StatsRow.model_validate({"step": 2, **ROW, "loss": 0.25}))
    log.log_grid(2, picture)
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert events.Tags()["images"] == ["samples"]
    assert "train/gradient_norm" not in events.Tags()["scalars"]


@pytest.mark.slow
def test_wandb_keeps_a_run_offline(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = StatsLog(tmp_path, recipe_config("rdm-tiny").with_overrides(['trackers=["wandb"]']), 0)
    log.log(StatsRow.model_validate({"step": 1, **ROW}))
    log.log_grid(1, picture)
    log.close()
    name = (tmp_path / "wandb_id").read_text()
    written = list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(written) == 1
    assert b"learning_rate" in written[0].read_bytes()
    StatsLog(tmp_path, recipe_config("rdm-tiny"), 1)
    assert (tmp_path / "wandb_id").read_text() == name


def test_a_tracker_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    config = recipe_config("rdm-tiny").with_overrides(['trackers=["wandb"]'])
    with pytest.raises(MissingDependencyError, match="wandb") as caught:
        StatsLog(tmp_path, config, 0)
    assert caught.value.fix == "pip install 'retrieval-diffusion[wandb]'"


def test_a_line_is_written_back_as_it_was_read(tmp_path: Path) -> None:
    lines = (
        '{"step": 1, "loss": 0.1, "learning_rate": 1e-05, "gradient_norm": null, "kl": 3.7}\n'
        '{"step": 5, "loss": 0.30000000000000004, "codebook_used": 1.0}\n'
    )
    (tmp_path / "stats.jsonl").write_text(lines)
    StatsLog(tmp_path, recipe_config("rdm-tiny"), 5)
    assert (tmp_path / "stats.jsonl").read_text() == lines
