import numpy as np
import pytest

from rdm.evaluation.intervals import mean_interval, within_subject_intervals


def test_the_interval_of_three_values_is_students():
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="two values"):
        mean_interval(np.array([1.0]))


def test_differences_between_subjects_do_not_widen_paired_intervals():
    effect = np.array([0.0, 1.0, 2.0])
    noise = np.random.default_rng(0).normal(size=(50, 3)) * 0.1
    subjects = np.random.default_rng(1).normal(size=(50, 1)) * 100
    plain = within_subject_intervals(effect + noise)
    shifted = within_subject_intervals(effect + noise + subjects)
    assert [i.half_width for i in plain] == pytest.approx([i.half_width for i in shifted])


def test_paired_intervals_have_moreys_correction():
    values = np.array([[0.0, 1.0], [0.0, 3.0]])
    half = mean_interval(np.array([1.0, 0.0])).half_width
    assert within_subject_intervals(values)[0].half_width == pytest.approx(half * np.sqrt(2))


def test_intervals_cover_the_mean_at_their_level():
    rng = np.random.default_rng(2)
    hits = [abs(i.mean) <= i.half_width for i in (mean_interval(rng.normal(size=10)) for _ in range(2000))]
    assert abs(np.mean(hits) - 0.95) < 0.02
