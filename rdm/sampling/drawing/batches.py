"""Canonical batches: every picture of a request is drawn in a batch of one shape.

Kernels choose how to add numbers up by the shape of their input, so the last bits of a picture
depend on how many rows its batch has, and on some machines on its row; never on what the other rows
hold (measured: `python -m benchmarks.batch_bits`). A batch that lacks pictures is therefore filled
up, and a picture is the same alone, after a kill, and in any process that computes alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rdm.generators.sample_settings import DrawStep, OnDrawStep, SampleSettings

_CPU_ROWS, _GPU_ROWS = 8, 32
RowT = TypeVar("RowT")


def rows_at_once(settings: SampleSettings, device: torch.device) -> int:
    """Return the number of rows of every batch: that of the settings, else the device's."""
    if settings.batch_size is not None:
        return settings.batch_size
    return _CPU_ROWS if device.type == "cpu" else _GPU_ROWS


@dataclass(frozen=True)
class FilledBatch(Generic[RowT]):
    """Rows of a batch of the canonical shape.

    Attributes:
        rows: as many as the shape has.
        first: place of the first row that counts.
        count: rows that count; the others fill the batch up.
    """

    rows: tuple[RowT, ...]
    first: int
    count: int

    def counted(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what was computed for the rows that count."""
        return values[self.first : self.first + self.count]

    def listener(self, on_step: OnDrawStep | None) -> OnDrawStep | None:
        """Return a listener that reports the rows that count alone."""
        if on_step is None or self.count == len(self.rows):
            return on_step

        def report(step: DrawStep) -> None:
            seeds = step.seeds[self.first : self.first + self.count]
            x0 = step.x0[self.first : self.first + self.count]
            preview = lambda: self.counted(step.preview())  # noqa: E731
            shown = DrawStep(seeds, step.index, step.total, preview, x0)
            on_step(shown)

        return report


def filled(rows: Sequence[RowT], shape: int, first: int = 0) -> FilledBatch[RowT]:
    """Return rows as a batch of a shape, filled up with repetitions of the first.

    Args:
        rows: at least one, at most `shape - first`.
        shape: rows of the batch.
        first: where they begin.

    Raises:
        ValueError: they do not fit.
    """
    if not rows or first + len(rows) > shape:
        raise ValueError(f"{len(rows)} rows from {first} on do not fit into a batch of {shape}")
    before, after = [rows[0]] * first, [rows[0]] * (shape - first - len(rows))
    return FilledBatch((*before, *rows, *after), first, len(rows))


def filled_batches(rows: Sequence[RowT], shape: int, first: int = 0) -> Iterator[FilledBatch[RowT]]:
    """Yield rows in batches of a shape, the last one filled up.

    Args:
        rows: any number.
        shape: rows of each batch.
        first: where in the first batch they begin.
    """
    start = 0
    while start < len(rows):
        stop = min(start + shape - first, len(rows))
        yield filled(rows[start:stop], shape, first)
        start, first = stop, 0
