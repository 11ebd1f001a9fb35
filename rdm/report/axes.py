"""Axes of the plots: scales from data to pixels, ticks at round numbers, and their labels."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A map from the interval [low, high] of the data to the pixels [start, stop], linear or logarithmic.

    Raises:
        ValueError: the interval is empty or not finite, or a logarithmic one is not positive.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an axis needs low < high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic axis needs positive values, got {self.low}")

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; values outside the interval land outside the pixels."""
        if self.log:
            fraction = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            fraction = (value - self.low) / (self.high - self.low)
        return self.start + fraction * (self.stop - self.start)

    def ticks(self, max_ticks: int = 6) -> list[float]:
        """Return round values inside the interval, ascending."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, max_ticks)


def tick_step(low: float, high: float, max_ticks: int) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that gives at most `max_ticks` intervals."""
    rough = (high - low) / max_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def linear_ticks(low: float, high: float, max_ticks: int = 6) -> list[float]:
    """Return the multiples of `tick_step` inside [low, high]."""
    step = tick_step(low, high, max_ticks)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Multiplying an integer instead of adding up keeps 0.3 from becoming 0.30000000000000004.
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten inside [low, high]; with fewer than two of them also 2 and 5 times those."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    if len(powers) >= 2:
        return powers
    return [tick for decade in decades for factor in (1, 2, 5) if low <= (tick := factor * 10.0**decade) <= high]


def tick_label(value: float, step: float) -> str:
    """Return a tick's label with the decimals that its step needs; 10,000 and more in thousands (k) or millions (M)."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if suffix == "k" else 1):
            return f"{value / size:.6g}{suffix}".replace("-", "\N{MINUS SIGN}")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def padded(low: float, high: float, fraction: float = 0.06) -> tuple[float, float]:
    """Return the interval widened on both sides; one of no width becomes one around its value."""
    margin = (high - low) * fraction or abs(high) * 0.1 or 1.0
    return low - margin, high + margin
