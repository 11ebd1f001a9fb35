"""Statistics of a run: `stats.jsonl` always, TensorBoard and Weights & Biases beside it where they
are asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from rdm.errors import MissingDependencyError
from rdm.storage.files import atomic_path, storage_errors
from rdm.training.config import TrainConfig

STATS = "stats.jsonl"
_TAIL_BYTES = 65536  # more than a line
Row = Mapping[str, Any]


class Tracker(Protocol):
    """A service that shows a run's numbers and pictures."""

    def log(self, row: Row) -> None:
        """Take a line of statistics; `row["step"]` is the number of steps done."""
        ...

    def log_grid(self, step: int, path: Path) -> None:
        """Take a picture."""
        ...

    def close(self) -> None:
        """Write out what is held back."""
        ...


class StatsLog:
    """Rank 0's record of a run. Lines that lie beyond the step from which the run goes on are
    dropped first."""

    def __init__(self, out: Path, config: TrainConfig, resumed_step: int) -> None:
        self._path = out / STATS
        kept = [row for row in read_stats(out) if row["step"] <= resumed_step]
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._trackers: list[Tracker] = [
            _TRACKERS[name](out, config, resumed_step) for name in config.trackers
        ]

    def log(self, row: Row) -> None:
        """Append a line."""
        with storage_errors(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(_line(row))
        for tracker in self._trackers:
            tracker.log(row)

    def log_grid(self, step: int, path: Path) -> None:
        """Pass a picture on."""
        for tracker in self._trackers:
            tracker.log_grid(step, path)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()


def read_stats(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `stats.jsonl`; a half-written last line is left out."""
    path = out / STATS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def last_stats(out: Path) -> dict[str, Any] | None:
    """Return the last whole line, without reading those before it."""
    path = out / STATS
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else None


def stats_of(out: Path, step: int) -> dict[str, Any]:
    """Return the line of a step; its number alone where somebody took the line away."""
    return next((row for row in read_stats(out) if row["step"] == step), {"step": step})


class TensorBoardTracker:
    """Event files in `OUT/tensorboard`: tensorboard --logdir OUT."""

    def __init__(self, out: Path, config: TrainConfig, resumed_step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        # What an earlier start wrote beyond the step from which this one goes on is hidden by
        # TensorBoard itself.
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=resumed_step + 1)
        self._writer.add_text("config", f"```json\n{config.model_dump_json(indent=1)}\n```")

    def log(self, row: Row) -> None:
        """See Tracker."""
        for name, value in _numbers(row).items():
            self._writer.add_scalar(f"train/{name}", value, row["step"])

    def log_grid(self, step: int, path: Path) -> None:
        """See Tracker."""
        self._writer.add_image("samples", np.asarray(Image.open(path)), step, dataformats="HWC")

    def close(self) -> None:
        """See Tracker."""
        self._writer.close()


class WandbTracker:
    """A run in the project `retrieval-diffusion`, or WANDB_PROJECT's; WANDB_MODE=offline keeps it
    in `OUT/wandb`."""

    def __init__(self, out: Path, config: TrainConfig, resumed_step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "retrieval-diffusion"),
            id=_wandb_id(out),
            resume="allow",
            dir=str(out),
            name=out.name,
            config=config.model_dump(mode="json"),
        )

    def log(self, row: Row) -> None:
        """See Tracker."""
        self._run.log(_numbers(row), step=row["step"])

    def log_grid(self, step: int, path: Path) -> None:
        """See Tracker."""
        self._run.log({"samples": self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()


_TRACKERS = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}


def _line(row: Row) -> str:
    """Return a row as a line of JSON, which knows no infinity: fp16's gradient norm is one when a
    step is left out."""
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(values, allow_nan=False) + "\n"


def _numbers(row: Row) -> dict[str, float]:
    return {
        name: value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float)
    }


def _wandb_id(out: Path) -> str:
    """Return the run's id at Weights & Biases, drawn once and kept, so that a resumed run stays one
    run there."""
    path = out / "wandb_id"
    if not path.exists():
        path.write_text(os.urandom(4).hex(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"trackers asks for {package}, which is not installed",
        fix=f"pip install 'retrieval-diffusion[{package}]'",
    )
