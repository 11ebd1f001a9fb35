"""Means and shares with confidence intervals, also for paired designs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats takes two seconds to load

from rdm.config import Config

_Z = 1.959963984540054  # of the normal distribution, two-sided 95%


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


class Share(Config):
    """A share of trials that succeeded, with the ends of its 95% interval (Wilson 1927)."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> Share:
    """Return the share of successes with Wilson's score interval at 95%; its ends lie in [0, 1].

    Raises:
        ValueError: there is no trial, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials have no share")
    share, z2 = successes / trials, _Z**2
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # Exactly 0, which rounding would miss by a little, perhaps to below 0.
    low = 0.0 if successes == 0 else center - spread
    return Share(value=share, low=low, high=1.0 if successes == trials else center + spread)


def within_subject_intervals(values: NDArray[np.floating]) -> list[Interval]:
    """Return one interval per condition of a paired design [N subjects, C conditions].

    What differs from subject to subject is removed before the error is computed (Cousineau 2005),
    with Morey's correction sqrt(C / (C - 1)) (2008). Such intervals show whether conditions differ;
    they say nothing about new subjects' level.
    """
    conditions = values.shape[1]
    centred = values - values.mean(axis=1, keepdims=True) + values.mean()
    correction = math.sqrt(conditions / (conditions - 1))
    plain = [mean_interval(centred[:, column]) for column in range(conditions)]
    return [Interval(interval.mean, interval.half_width * correction) for interval in plain]
