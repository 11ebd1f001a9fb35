"""Dispatch: rows of the queue become batches of drawers, and pictures of jobs again."""

from __future__ import annotations

import base64
import itertools
import logging
from typing import Protocol

from rdm.errors import RdmError
from rdm.sampling.recipe.record import BatchPlace
from rdm.serving.drawing.drawers import Drawer, Drawers
from rdm.serving.drawing.messages import (
    DrawerReady,
    Drawn,
    DrawTask,
    StepDone,
    Stopped,
)
from rdm.serving.jobs.pictures import DrawnPicture
from rdm.serving.jobs.queue import FairQueue, Row
from rdm.serving.jobs.records import Job
from rdm.serving.metrics import Metrics
from rdm.serving.problems import ServeError

logger = logging.getLogger(__name__)
_MAX_ATTEMPTS = 2


class JobProgress(Protocol):
    """Receives what happens to jobs."""

    def on_started(self, job: Job) -> None:
        """The first batch of a job was sent to a drawer."""
        ...

    def on_preview(self, job: Job, index: int, step: StepDone, data: str) -> None:
        """A picture as it would be now, as WebP in base64; nothing where it is only a step."""
        ...

    def on_picture(self, row: Row, drawn: DrawnPicture, seconds: float) -> None:
        """A picture is drawn; its batch took so long."""
        ...

    def on_failed(self, job: Job, error: Exception) -> None:
        """A job cannot be drawn."""
        ...

    def on_unable(self, error: RdmError) -> None:
        """A drawer cannot load its models."""
        ...


class Dispatch:
    """Sends batches to idle drawers. Everything runs in the event loop."""

    def __init__(self, drawers: Drawers, progress: JobProgress, metrics: Metrics) -> None:
        self.queue = FairQueue()
        self.drawers = drawers
        self.seconds_per_step = 0.05
        self._progress = progress
        self._metrics = metrics
        self._numbers = itertools.count(1)
        self._rows: dict[int, list[Row]] = {}
        self.is_paused = False

    @property
    def num_drawing(self) -> int:
        """Batches in work."""
        return len(self._rows)

    @property
    def is_ready(self) -> bool:
        """Whether any drawer can draw."""
        return any(drawer.is_ready for drawer in self.drawers.all)

    @property
    def seconds_per_picture_step(self) -> float:
        """Of one picture, all drawers working."""
        return self.seconds_per_step / max(1, len(self.drawers.all))

    def add(self, rows: list[Row]) -> None:
        """Let rows wait for a drawer."""
        self.queue.add(rows)
        self.wake()

    def drop(self, job: Job) -> None:
        """Forget a job that has ended: its waiting rows, and a batch that is nobody else's."""
        self.queue.remove(job)
        for drawer in self.drawers.all:
            rows = self._rows.get(drawer.task.number, []) if drawer.task else []
            if rows and all(row.job.has_ended for row in rows):
                self.drawers.cancel(drawer)

    def wake(self) -> None:
        """Send a batch to each idle drawer."""
        self._metrics.queue_depth.set(len(self.queue))
        for drawer in self.drawers.all:
            if self.is_paused or not drawer.is_idle or not (rows := self.queue.next_batch()):
                continue
            task = _task_of(rows, next(self._numbers))
            self._rows[task.number] = rows
            self.drawers.send(drawer, task)
            for row in rows:
                row.attempts += 1
                self._progress.on_started(row.job)
        self._metrics.queue_depth.set(len(self.queue))

    def on_ready(self, drawer: Drawer, ready: DrawerReady) -> None:
        """See DrawerEvents."""
        self.seconds_per_step = ready.seconds_per_step
        self._metrics.drawers_ready.set(sum(one.is_ready for one in self.drawers.all))
        logger.info("the drawer of %s is ready", drawer.device)
        self.wake()

    def on_step(self, drawer: Drawer, step: StepDone) -> None:
        """See DrawerEvents."""
        for place, row in enumerate(self._rows.get(step.number, ())):
            if not row.job.has_ended:
                data = step.previews[place] if step.previews else b""
                self._progress.on_preview(row.job, row.index, step, base64.b64encode(data).decode())

    def on_drawn(self, drawer: Drawer, drawn: Drawn) -> None:
        """See DrawerEvents."""
        rows = self._rows.pop(drawn.number, [])
        steps = rows[0].job.request.settings.num_steps if rows else 1
        shape = rows[0].shape if rows else 1
        measured = drawn.seconds / (shape * steps)
        self.seconds_per_step = 0.7 * self.seconds_per_step + 0.3 * measured
        self._metrics.draw_seconds.observe(drawn.seconds)
        # The drawer goes on while pictures are encoded and stored.
        self.wake()
        for place, (row, pixels) in enumerate(zip(rows, drawn.pixels, strict=True)):
            ready = next(one for one in drawer.models if one.name == row.job.request.model)
            done = DrawnPicture(pixels, ready, drawn.acting, BatchPlace(shape=shape, row=place))
            self._progress.on_picture(row, done, drawn.seconds)

    def on_stopped(self, drawer: Drawer, stopped: Stopped) -> None:
        """See DrawerEvents."""
        rows = self._rows.pop(stopped.number, [])
        error = stopped.error
        if isinstance(error, MemoryError):
            error = ServeError(
                "out_of_memory", "the device has too little memory for this", fix="ask for less"
            )

        # Without an error it was cancelled: what others wait for goes back in front.
        living = [row for row in rows if not row.job.has_ended]
        if error is None:
            self.queue.add(living, first=True)
        else:
            for job in {id(row.job): row.job for row in living}.values():
                self._progress.on_failed(job, error)
        self.wake()

    def on_died(self, drawer: Drawer, task: DrawTask | None) -> None:
        """See DrawerEvents: what it had in work is drawn again, once."""
        self._metrics.restarts.inc()
        self._metrics.drawers_ready.set(sum(one.is_ready for one in self.drawers.all))

        # A drawing that kills its drawer would kill the next one too: attempts are counted.
        rows = self._rows.pop(task.number, []) if task else []
        living = [row for row in rows if not row.job.has_ended]
        self.queue.add([row for row in living if row.attempts < _MAX_ATTEMPTS], first=True)
        for job in {id(r.job): r.job for r in living if r.attempts >= _MAX_ATTEMPTS}.values():
            self._progress.on_failed(
                job,
                ServeError(
                    "worker_died",
                    f"the process that was drawing died {_MAX_ATTEMPTS} times",
                    fix="send the job again; the server's log may say why",
                ),
            )
        # What a user must mend: another start would fail alike.
        if isinstance(drawer.failure, RdmError) and not drawer.models:
            self._progress.on_unable(drawer.failure)
        self.wake()


def _task_of(rows: list[Row], number: int) -> DrawTask:
    """Return a batch, which drawing fills up to its canonical shape."""
    first = rows[0]
    return DrawTask(
        number=number,
        model=first.job.request.model or "",
        asked=tuple(row.asked for row in rows),
        settings=first.settings,
        previews=any(row.job.request.preview != "off" for row in rows),
    )
