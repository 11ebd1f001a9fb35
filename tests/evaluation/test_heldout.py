import numpy as np
import pytest

from rdm.evaluation.heldout import HeldOutResult, _derangement


@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 4, 4, 4], [1, 5, 2]])
def test_shuffled_neighbors_are_those_of_another_photograph(counts):
    images = np.repeat([f"image{number}" for number in range(len(counts))], counts)
    other = _derangement(images, seed=0)
    assert np.all(images[other] != images)


def test_every_photograph_lends_its_neighbors_to_one_other():
    images = np.repeat(["a", "b", "c", "d"], 3)
    other = _derangement(images, seed=1)
    assert sorted(set(images[other])) == ["a", "b", "c", "d"]


def test_differences_are_paired():
    level = np.random.default_rng(0).normal(size=(40, 1)) * 10
    result = HeldOutResult(
        level + np.array([[0.0, 0.5, 0.25]]), num_draws=4, conditioning_dropout=0.1, loss_kind="v"
    )
    assert result.differences["shuffled"].mean == pytest.approx(0.5)
    assert result.differences["shuffled"].half_width == pytest.approx(0, abs=1e-9)
    assert result.differences["none"].mean == pytest.approx(0.25)


def test_the_summary_names_the_conditions():
    result = HeldOutResult(
        np.random.default_rng(0).normal(size=(5, 3)), num_draws=4, conditioning_dropout=0.1, loss_kind="v"
    )
    assert set(result.summary()["losses"]) == {"true", "shuffled", "none"}
