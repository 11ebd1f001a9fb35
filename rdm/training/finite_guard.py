"""Stops a run whose loss is not finite, and writes down the batch that was the cause."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from rdm.errors import TrainingError
from rdm.storage.files import storage_errors
from rdm.training.data.batches import BatchReader
from rdm.training.engine.deepspeed_engine import Engine, StepResult

BAD_BATCHES = "bad_batches"
# Above any step, and within an int64: the ranks agree on the least by a reduction.
_NEVER = 2**62


@dataclass(frozen=True)
class SeenStep:
    """What a step left behind until its loss is looked at; the tensors are on the device."""

    step: int
    positions: NDArray[np.int64]
    result: StepResult
    gradient_norm: float | Tensor | None


class LossGuard:
    """Checks every step's loss and gradient norm, some steps late to not wait for the device.

    The first step that is not finite on any rank is written to `OUT/bad_batches/step-N-rank-R.json`
    (each sample's key, stream position, timestep and loss) and `.safetensors` (the batch itself),
    by the ranks that saw it.
    """

    def __init__(self, out: Path, engine: Engine, reader: BatchReader) -> None:
        self._directory = out / BAD_BATCHES
        self._engine = engine
        self._reader = reader
        self._seen: list[SeenStep] = []

    def watch(self, seen: SeenStep) -> None:
        """Remember a step until the next check."""
        self._seen.append(seen)

    def check(self) -> None:
        """Look at the steps since the last check; every rank must call it.

        Raises:
            TrainingError: a loss or a gradient is not finite; the batch is written down.
        """
        # Reading a loss waits for the device, so it is done for many steps at once.
        seen, self._seen = self._seen, []
        own = next((step for step in seen if not self._is_finite(step)), None)
        first = self._engine.least(own.step if own else _NEVER)
        if first == _NEVER:
            return
        if own is not None and own.step == first:
            self._write(own)
        self._engine.barrier()
        raise TrainingError(
            f"the loss is not finite at step {first}",
            where=self._directory,
            fix="the files there hold the samples, their timesteps and losses: mend those, "
            "or lower learning_rate; "
            "the last checkpoint stands",
        )

    def check_weights(self, step: int) -> None:
        """Look at the weights themselves, whose loss is the next step's; every rank must call it.

        Raises:
            TrainingError: a weight is not finite.
        """
        finite = all(
            bool(torch.isfinite(weights).all()) for weights in self._engine.owned_weights()
        )
        if not self._engine.least(int(finite)):
            raise TrainingError(
                f"the weights are not finite after step {step}",
                where=self._directory.parent,
                fix="lower learning_rate; the last checkpoint stands",
            )

    def _is_finite(self, seen: SeenStep) -> bool:
        # Under fp16 a norm that is not finite is the loss scale being tried out: DeepSpeed leaves
        # that step out.
        norm_counts = seen.gradient_norm is not None and self._engine.config.precision != "fp16"
        losses = all(bool(torch.isfinite(value)) for value in seen.result.metrics.values())
        return losses and (not norm_counts or math.isfinite(float(seen.gradient_norm or 0.0)))

    def _write(self, seen: SeenStep) -> None:
        path = self._directory / f"step-{seen.step:08d}-rank-{self._engine.rank}.json"
        samples = {name: _numbers(values) for name, values in seen.result.samples.items()}
        rows = [
            {
                "key": key,
                "stream_position": int(position),
                **{name: values[row] for name, values in samples.items()},
            }
            for row, (key, position) in enumerate(
                zip(self._reader.keys(seen.positions), seen.positions, strict=True)
            )
        ]

        record = {
            "step": seen.step,
            "rank": self._engine.rank,
            "gradient_norm": None
            if seen.gradient_norm is None
            else _number(float(seen.gradient_norm)),
            "metrics": {name: _number(float(value)) for name, value in seen.result.metrics.items()},
            "samples": rows,
        }

        # The batch itself lies beside the record, so that the step can be repeated.
        with storage_errors(path):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            save_file(
                _tensors(self._reader.batch(seen.positions)), path.with_suffix(".safetensors")
            )


def _numbers(values: Tensor) -> list[float | str]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | str:
    """Return a number as JSON knows it: what is not finite as text."""
    return value if math.isfinite(value) else str(value)


def _tensors(batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
