"""Statistics of a run: `stats.jsonl`, and TensorBoard or Weights & Biases on request."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from PIL import Image
from pydantic import BeforeValidator, ConfigDict

from rdm.config import Record
from rdm.errors import MissingDependencyError
from rdm.storage.files import atomic_path, storage_errors
from rdm.training.config import TrainConfig

STATS = "stats.jsonl"
_TAIL_BYTES = 65536  # more than a line


def _nan_for_null(value: object) -> object:
    return math.nan if value is None else value


class StatsRow(Record):
    """A line of `stats.jsonl`: means over the ranks, of the steps since the line before.

    The objective's other metrics, such as `psnr_db`, stand beside these fields. A number that is
    not finite is null in the file, and a field that was not set is not in it.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    step: int
    """Optimizer steps done."""
    loss: Annotated[float, BeforeValidator(_nan_for_null)] = math.nan
    learning_rate: float | None = None
    gradient_norm: float | None = None
    """Before clipping."""
    seconds_per_step: float | None = None
    samples_per_second: float | None = None
    """Of all ranks together."""
    model_flops_per_second: float | None = None
    """Of the network alone, over all ranks; not set for heads on ready features."""
    model_flop_utilization: float | None = None
    """Share of the devices' peak that these are; not set where the peak is not known."""

    def to_json(self) -> dict[str, Any]:
        """Return what was set, as the file holds it."""
        return self.model_dump(mode="json", exclude_unset=True)

    def numbers(self) -> dict[str, float]:
        """Return every number but the step by name, the objective's metrics included."""
        values = self.model_dump(exclude_unset=True, exclude={"step"})
        return {name: value for name, value in values.items() if isinstance(value, int | float)}

    def words(self) -> str:
        """Return loss and speed for a progress bar."""
        return f"loss {self.loss:.4f}, {self.samples_per_second or 0:.0f} samples/s"


class Tracker(Protocol):
    """A service that shows a run's numbers and pictures."""

    def log(self, row: StatsRow) -> None:
        """Take a line of statistics."""
        ...

    def log_grid(self, step: int, path: Path) -> None:
        """Take a picture."""
        ...

    def close(self) -> None:
        """Write out what is held back."""
        ...


class StatsLog:
    """Rank 0's record of a run; lines beyond the step from which it resumes are dropped."""

    def __init__(self, out: Path, config: TrainConfig, resumed_step: int) -> None:
        self._path = out / STATS
        # Steps after the checkpoint are done again: their lines would stand there twice.
        kept = [row for row in read_stats(out) if row.step <= resumed_step]
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._trackers: list[Tracker] = [
            _TRACKERS[name](out, config, resumed_step) for name in config.trackers
        ]

    def log(self, row: StatsRow) -> None:
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


def read_stats(out: Path) -> list[StatsRow]:
    """Return the lines of a run's `stats.jsonl`; a half-written last line is left out."""
    path = out / STATS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [StatsRow.model_validate(json.loads(line)) for line in lines[:-1]]


def last_stats(out: Path) -> StatsRow | None:
    """Return the last whole line, without reading those before it."""
    path = out / STATS
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        # What follows the last line break is empty, or a line that is just being written.
        lines = file.read().split(b"\n")[:-1]
    return StatsRow.model_validate(json.loads(lines[-1])) if lines else None


def stats_of(out: Path, step: int) -> StatsRow:
    """Return the line of a step; its number alone where somebody took the line away."""
    return next((row for row in read_stats(out) if row.step == step), StatsRow(step=step))


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

    def log(self, row: StatsRow) -> None:
        """See Tracker."""
        for name, value in row.numbers().items():
            self._writer.add_scalar(f"train/{name}", value, row.step)

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

    def log(self, row: StatsRow) -> None:
        """See Tracker."""
        self._run.log(row.numbers(), step=row.step)

    def log_grid(self, step: int, path: Path) -> None:
        """See Tracker."""
        self._run.log({"samples": self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()


_TRACKERS = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}


def _line(row: StatsRow) -> str:
    """Return a row as a line of JSON, which knows no infinity: fp16's gradient norm is one when a
    step is left out."""
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.to_json().items()
    }
    return json.dumps(values, allow_nan=False) + "\n"


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
