from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from rdm.evaluation.metrics.fid import compare, frechet_distance, kernel_distance


@pytest.fixture
def features() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 16)), rng.normal(size=(300, 16)) * 1.3 + 0.2


def test_the_distance_equals_the_matrix_square_root_formula(
    features: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    first, second = features
    c1, c2 = np.cov(first.T), np.cov(second.T)
    shift = first.mean(axis=0) - second.mean(axis=0)
    expected = shift @ shift + np.trace(c1 + c2 - 2 * np.real(linalg.sqrtm(c1 @ c2)))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_a_set_has_no_distance_to_itself(
    features: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    assert frechet_distance(features[0], features[0]) == pytest.approx(0, abs=1e-9)


def test_a_shift_counts_by_its_square(
    features: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    assert frechet_distance(features[0], features[0] + 2) == pytest.approx(4 * 16, rel=1e-9)


def test_the_distance_is_symmetric_with_fewer_samples_than_features() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(8, 64)), rng.normal(size=(12, 64))
    assert frechet_distance(first, second) == pytest.approx(
        frechet_distance(second, first), rel=1e-9
    )


def test_the_kernel_distance_of_halves_of_one_set_is_near_zero() -> None:
    values = np.random.default_rng(2).normal(size=(1000, 32))
    assert abs(kernel_distance(values[:500], values[500:])) < 0.05


def test_the_kernel_distance_grows_with_a_shift(
    features: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    first, second = features
    assert kernel_distance(first, second + 1) > kernel_distance(first, second) > 0


def test_a_comparison_states_its_protocol(
    features: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    rows = compare(features[0], features[1], "half")
    assert [row.name for row in rows] == ["FID", "KID"]
    assert rows[0].num_samples == 400
    assert rows[0].reference == "half, 300 pictures"
