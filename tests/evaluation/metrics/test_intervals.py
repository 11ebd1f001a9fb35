from __future__ import annotations

import numpy as np
import pytest

from rdm.evaluation.metrics.intervals import (
    mean_interval,
    wilson_interval,
    within_subject_intervals,
)


def test_the_interval_of_three_values_is_students() -> None:
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two values"):
        mean_interval(np.array([1.0]))


def test_differences_between_subjects_do_not_widen_paired_intervals() -> None:
    effect = np.array([0.0, 1.0, 2.0])
    noise = np.random.default_rng(0).normal(size=(50, 3)) * 0.1
    subjects = np.random.default_rng(1).normal(size=(50, 1)) * 100
    plain = within_subject_intervals(effect + noise)
    shifted = within_subject_intervals(effect + noise + subjects)
    assert [i.half_width for i in plain] == pytest.approx([i.half_width for i in shifted])


def test_paired_intervals_have_moreys_correction() -> None:
    values = np.array([[0.0, 1.0], [0.0, 3.0]])
    half = mean_interval(np.array([1.0, 0.0])).half_width
    assert within_subject_intervals(values)[0].half_width == pytest.approx(half * np.sqrt(2))


def test_intervals_cover_the_mean_at_their_level() -> None:
    rng = np.random.default_rng(2)
    hits = [
        abs(i.mean) <= i.half_width
        for i in (mean_interval(rng.normal(size=10)) for _ in range(2000))
    ]
    assert abs(np.mean(hits) - 0.95) < 0.02


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (10, 20, 0.299298, 0.700702),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (1, 1, 1 / (1 + 1.959964**2), 1.0),
        (342, 608, 0.522798, 0.601417),
    ],
)
def test_wilson_interval_has_the_known_ends(
    successes: int, trials: int, low: float, high: float
) -> None:
    found = wilson_interval(successes, trials)
    assert found.value == successes / trials
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


def test_wilson_interval_solves_the_score_equation() -> None:
    found = wilson_interval(7, 50)
    for end in (found.low, found.high):
        assert abs(0.14 - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 50), rel=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_no_share_of_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="have no share"):
        wilson_interval(successes, trials)
