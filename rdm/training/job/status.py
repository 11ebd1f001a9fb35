"""How a training run is doing, read from the files that it writes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rdm.config import Config
from rdm.errors import TrainingError
from rdm.storage.locks import is_locked

if TYPE_CHECKING:
    from rdm.training.stats import StatsRow

Health = Literal["training", "starting", "stalled", "finished", "failed", "stopped"]
LOCK = ".job.lock"
STALLED_AFTER_SECONDS = 300.0
_BARS = "▁▂▃▄▅▆▇█"
_SPARKLINE_POINTS = 40


class RunStatus(Config):
    """One look at a run.

    Attributes:
        health: `training`: a job holds the folder and writes statistics; `starting`: it has not
            written any yet; `stalled`: none for five minutes and a hundred steps' time; `finished`;
            `failed`: see `error`; `stopped`: no job holds the folder, the same command goes on.
        step: optimizer steps done, of `max_steps`.
        seconds_left: at the pace of the last statistics; None where there is none.
        losses: at most 40 means over equal parts of the run, oldest first.
        checkpoint_step: of the last complete checkpoint; None: there is none.
        best_step: of the kept checkpoint with the lowest mean loss.
        grid: the newest grid of samples.
        model_flops_per_second: of the network alone, over all ranks; None for heads on ready
            features.
        model_flop_utilization: share of the devices' peak that these are; None where the peak is
            not known.
    """

    out: str
    recipe: str
    health: Health
    step: int
    max_steps: int
    seconds_left: float | None
    samples_per_second: float | None
    model_flops_per_second: float | None
    model_flop_utilization: float | None
    learning_rate: float | None
    gradient_norm: float | None
    loss: float | None
    losses: tuple[float, ...]
    checkpoint_step: int | None
    best_step: int | None
    grid: str | None
    error: str | None

    @property
    def sparkline(self) -> str:
        """The losses as a line of eight heights."""
        return sparkline(self.losses)


def read_status(out: Path) -> RunStatus:
    """Return the status of a run's folder.

    Raises:
        TrainingError: there is no run.
    """
    from rdm.training.checkpoints import Checkpoints
    from rdm.training.grids import latest_grid
    from rdm.training.job.job_errors import read_error
    from rdm.training.job.rank import RUN_FILE, read_run
    from rdm.training.stats import StatsRow, read_stats

    if not (out / RUN_FILE).is_file():
        raise TrainingError(
            "there is no run here", where=out, fix="give --run the folder of `rdm train --out`"
        )
    config, _ = read_run(out)
    stats = read_stats(out)
    last = stats[-1] if stats else StatsRow(step=0)
    found = Checkpoints(out, config).complete()
    error = read_error(out)
    grid = latest_grid(out)
    health = _health(out, exported_steps(out) == config.max_steps, last, error is not None)
    pace = last.seconds_per_step if health in ("training", "starting") else None
    return RunStatus(
        out=str(out),
        recipe=config.recipe,
        health=health,
        step=last.step,
        max_steps=config.max_steps,
        seconds_left=None if pace is None else (config.max_steps - last.step) * pace,
        samples_per_second=last.samples_per_second,
        model_flops_per_second=last.model_flops_per_second,
        model_flop_utilization=last.model_flop_utilization,
        learning_rate=last.learning_rate,
        gradient_norm=last.gradient_norm,
        loss=None if math.isnan(last.loss) else last.loss,
        losses=tuple(means([row.loss for row in stats], _SPARKLINE_POINTS)),
        checkpoint_step=found[-1].step if found else None,
        best_step=min(found, key=lambda checkpoint: checkpoint.mean_loss).step if found else None,
        grid=str(grid) if grid else None,
        error=error["what"] if error and health == "failed" else None,
    )


def exported_steps(out: Path) -> int | None:
    """Return how many steps made the model in `OUT/model`; None: there is none.

    A run is finished when these are its `max_steps`. Its statistics do not tell: a run that goes on
    has the model of the shorter one beside them until the very end.
    """
    from rdm.training.loop import MODEL

    try:
        return json.loads((out / MODEL / "train_config.json").read_text(encoding="utf-8"))[
            "max_steps"
        ]
    except (OSError, ValueError, KeyError):
        return None


def sparkline(values: Sequence[float]) -> str:
    """Return values as blocks of eight heights; a value that is not finite is `x`."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "x" * len(values)
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    return "".join(
        _BARS[round((value - low) / span * (len(_BARS) - 1))] if math.isfinite(value) else "x"
        for value in values
    )


def means(values: Sequence[float], count: int) -> list[float]:
    """Return the means of at most `count` consecutive parts of nearly equal length."""
    parts = min(count, len(values))
    edges = [len(values) * number // parts for number in range(parts + 1)] if parts else []
    return [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]


def _health(out: Path, finished: bool, last: StatsRow, failed: bool) -> Health:
    from rdm.training.stats import STATS

    if is_locked(out / LOCK):
        if last.step == 0:
            return "starting"
        quiet = time.time() - (out / STATS).stat().st_mtime
        patience = STALLED_AFTER_SECONDS + 100 * (last.seconds_per_step or 0.0)
        return "stalled" if quiet > patience else "training"
    if finished:
        return "finished"
    return "failed" if failed else "stopped"
