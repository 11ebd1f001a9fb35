from __future__ import annotations

from pathlib import Path

import pytest

from rdm.errors import UsageError
from rdm.recipes import RECIPES, recipe_config
from rdm.training.checkpoints import run_digest
from rdm.training.loop import learning_rate
from rdm.training.objectives.generative import GenerativeConfig


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_named_after_itself(name: str) -> None:
    assert recipe_config(name).recipe == name


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no recipe") as caught:
        recipe_config("rdm-huge")
    assert "rdm-tiny" in caught.value.fix


def test_settings_reach_into_the_objective() -> None:
    config = recipe_config("rdm-tiny").with_overrides(
        ["max_steps=7", "objective.conditions.neighbors.k_train=2"]
    )
    assert config.objective.kind == "generative"
    neighbors = config.objective.conditions.neighbors
    assert neighbors is not None
    assert (config.max_steps, neighbors.k_train) == (7, 2)


def test_an_unknown_setting_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no setting 'steps'"):
        recipe_config("rdm-tiny").with_overrides(["steps=7"])


def test_a_value_out_of_range_names_its_field() -> None:
    with pytest.raises(UsageError, match="objective.*dropout"):
        recipe_config("rdm-tiny").with_overrides(["objective.conditions.neighbors.dropout=2"])


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = recipe_config("rdm-tiny").with_overrides(
        ["max_steps=100", "warmup_steps=10", "learning_rate=1.0"]
    )
    assert [learning_rate(config, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert learning_rate(config, 100) == pytest.approx(0)


def test_the_constant_schedule_stays_at_its_peak() -> None:
    config = recipe_config("rdm-tiny").with_overrides(["lr_schedule=constant", "learning_rate=0.5"])
    assert learning_rate(config, 900) == 0.5


def test_wsd_stays_at_its_peak_and_falls_in_a_line_to_zero() -> None:
    given = [
        "lr_schedule=wsd",
        "decay_share=0.2",
        "max_steps=100",
        "warmup_steps=10",
        "learning_rate=1.0",
    ]
    config = recipe_config("rdm-tiny").with_overrides(given)
    assert [learning_rate(config, step) for step in (4, 10, 80, 90, 100)] == pytest.approx(
        [0.5, 1, 1, 0.5, 0]
    )


def test_a_vector_that_a_network_does_not_read_is_refused_with_the_settings() -> None:
    with pytest.raises(UsageError, match="a vector of 512 numbers"):
        recipe_config("rdm-tiny").with_overrides(
            ["objective.conditions.neighbors.mean_vector=true"]
        )
    with pytest.raises(UsageError, match="the token-predictor reads none"):
        recipe_config("rarm-tiny").with_overrides(
            ["objective.conditions.neighbors.mean_vector=true"]
        )


def test_a_model_to_start_from_has_a_name_that_holds_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = recipe_config("rdm-tiny").with_overrides(["objective.start=run/model"])
    assert isinstance(config.objective, GenerativeConfig)
    assert config.objective.start == f"{tmp_path}/run/model"


def test_a_run_may_be_lengthened_and_logged_otherwise_but_not_changed() -> None:
    config = recipe_config("rdm-tiny")
    assert run_digest(config) == run_digest(
        config.with_overrides(["max_steps=2", "log_every=1", "checkpoint_every=3"])
    )
    assert run_digest(config) != run_digest(config.with_overrides(["seed=1"]))
    assert run_digest(config) != run_digest(
        config.with_overrides(["objective.conditions.neighbors.dropout=0.5"])
    )
