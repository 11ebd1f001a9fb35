"""The card of a trained model says what its run recorded, and nothing of where it ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from random_model import write_model_of_random_weights

from rdm.generators.model_folder import open_model, read_info, write_info
from rdm.generators.provenance import SeenDatabase
from rdm.recipes import recipe_config
from rdm.report.data import Metric
from rdm.report.run_card import CARD, write_run_card
from rdm.training.config import TrainInputs
from rdm.training.job.rank import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 30 steps, and its model."""
    out = tmp_path / "run"
    config = recipe_config("rdm-tiny").with_overrides(["max_steps=30"])
    write_run(out, config, TrainInputs(out=str(out), cache=str(tmp_path / "gone")))
    rows = [{"step": step, "loss": 1.0, "seconds_per_step": 0.5} for step in (10, 20, 30)]
    (out / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = write_model_of_random_weights(out / "model", 12, ("open_clip:ViT//home/me/w.pt", "ab"))
    seen = SeenDatabase(version=3, source="folder:///home/me/birds")
    write_info(model, read_info(model).model_copy(update={"database": seen}))
    return out


def card_of(run: Path) -> str:
    path = write_run_card(run)
    assert path is not None
    assert path == run / "model" / CARD
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        "# rdm-tiny, 30 steps",
        "| Steps | 30 of 32 pictures |",
        "| Time | 15.0 s |",
        "| Database | folder://birds, version 3 |",
        "Nothing was measured.",
        'rdm sample --model MODEL --database DB --text "..."',
    ],
)
def test_a_card_says_what_the_run_recorded(run: Path, line: str) -> None:
    assert line in card_of(run).splitlines()


def test_a_card_has_no_place_of_this_machine(run: Path) -> None:
    assert "/home/me" not in card_of(run)


def test_a_card_is_no_part_of_the_model(run: Path) -> None:
    before = open_model(run / "model").digest
    card_of(run)
    assert open_model(run / "model").digest == before


def test_measurements_are_in_the_card(run: Path) -> None:
    metric = Metric("KID", 0.1, "Inception v3", 64, "92 photographs", "bicubic")
    path = write_run_card(run, metrics=(metric,))
    assert path is not None
    assert "| KID | 0.1000 | Inception v3 | 64 |" in path.read_text(encoding="utf-8")


def test_a_run_that_trains_no_generator_has_no_card(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert write_run_card(tmp_path) is None
