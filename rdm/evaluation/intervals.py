"""Means with confidence intervals, also for paired designs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats takes two seconds to load


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95% confidence interval (Student's t)."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half_width


def mean_interval(values: NDArray[np.floating]) -> Interval:
    """Return the mean of independent values [N] with its interval; N >= 2.

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs two values or more, not {len(values)}")
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(float(np.mean(values)), float(stdtrit(len(values) - 1, 0.975)) * error)


def within_subject_intervals(values: NDArray[np.floating]) -> list[Interval]:
    """Return one interval per condition of a paired design [N subjects, C conditions].

    What differs from subject to subject is removed before the error is computed (Cousineau 2005), with Morey's
    correction sqrt(C / (C - 1)) (2008). Such intervals show whether conditions differ; they say nothing about new
    subjects' level.
    """
    conditions = values.shape[1]
    centred = values - values.mean(axis=1, keepdims=True) + values.mean()
    correction = math.sqrt(conditions / (conditions - 1))
    plain = [mean_interval(centred[:, column]) for column in range(conditions)]
    return [Interval(interval.mean, interval.half_width * correction) for interval in plain]
