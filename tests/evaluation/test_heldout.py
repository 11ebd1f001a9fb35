from __future__ import annotations

import numpy as np
import pytest
import torch

from rdm.context import Context, Part
from rdm.evaluation.heldout import HeldOutResult, _conditions, _derangement


@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 4, 4, 4], [1, 5, 2]])
def test_shuffled_neighbors_are_those_of_another_photograph(counts: list[int]) -> None:
    images = np.repeat([f"image{number}" for number in range(len(counts))], counts)
    other = _derangement(images, seed=0)
    assert np.all(images[other] != images)


def test_every_photograph_lends_its_neighbors_to_one_other() -> None:
    images = np.repeat(["a", "b", "c", "d"], 3)
    other = _derangement(images, seed=1)
    assert sorted(set(images[other])) == ["a", "b", "c", "d"]


def test_differences_are_paired() -> None:
    level = np.random.default_rng(0).normal(size=(40, 1)) * 10
    result = HeldOutResult(
        level + np.array([[0.0, 0.5, 0.25]]),
        num_draws=4,
        conditioning_dropout={"neighbors": 0.1},
        loss_kind="v",
    )
    assert result.differences["shuffled"].mean == pytest.approx(0.5)
    assert result.differences["shuffled"].half_width == pytest.approx(0, abs=1e-9)
    assert result.differences["none"].mean == pytest.approx(0.25)


def test_the_summary_names_the_conditions() -> None:
    losses = np.random.default_rng(0).normal(size=(5, 3))
    result = HeldOutResult(
        losses, num_draws=4, conditioning_dropout={"neighbors": 0.1}, loss_kind="v"
    )
    assert set(result.summary().losses) == {"true", "shuffled", "none"}


def contexts_of(*sources: str) -> dict[str, dict[str, list[float]]]:
    """Return what each source says to three samples under every condition."""
    parts = [Part(source, "vector", torch.arange(1.0, 4.0)[:, None]) for source in sources]
    others = torch.tensor([1, 2, 0])
    found = {
        name: changed(Context(*parts), others) for name, changed in _conditions(sources).items()
    }
    return {
        name: {p.source: p.values[:, 0].tolist() for p in context.parts}
        for name, context in found.items()
    }


def test_a_single_source_is_true_shuffled_and_left_out() -> None:
    assert contexts_of("text") == {
        "true": {"text": [1, 2, 3]},
        "shuffled": {"text": [2, 3, 1]},
        "none": {"text": [0, 0, 0]},
    }


def test_of_several_sources_one_at_a_time_is_shuffled_or_left_out() -> None:
    assert contexts_of("neighbors", "text") == {
        "true": {"neighbors": [1, 2, 3], "text": [1, 2, 3]},
        "shuffled neighbors": {"neighbors": [2, 3, 1], "text": [1, 2, 3]},
        "no neighbors": {"neighbors": [0, 0, 0], "text": [1, 2, 3]},
        "shuffled text": {"neighbors": [1, 2, 3], "text": [2, 3, 1]},
        "no text": {"neighbors": [1, 2, 3], "text": [0, 0, 0]},
    }


def test_a_model_that_reads_nothing_is_measured_as_it_is() -> None:
    assert list(_conditions(())) == ["none"]
