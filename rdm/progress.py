"""Progress of long work: the library reports, its caller shows it as bar, log or artifact."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from pydantic import JsonValue

from rdm.config import Record

logger = logging.getLogger(__name__)
LOG_EVERY_SECONDS = 30.0
StageFacts = dict[str, JsonValue]


class StageRecord(Record):
    """What a finished stage took."""

    name: str
    seconds: float
    peak_memory_bytes: int
    """Of its process with all children."""
    facts: StageFacts
    """What the stage said of its result."""


class ProgressSink(Protocol):
    """Receives the progress of one stage after another."""

    def start(self, stage: str, total: int, unit: str, done: int) -> None:
        """A stage begins; `done` of `total` items were finished by an earlier run."""
        ...

    def update(self, done: int, note: str) -> None:
        """`done` items are finished now; `note` is a short remark such as the current loss."""
        ...

    def finish(self) -> None:
        """The stage ends, well or not."""
        ...


class LogSink:
    """Writes a log line at a stage's start and end and every 30 seconds between."""

    def __init__(self) -> None:
        self._stage, self._unit, self._total, self._done, self._resumed = "", "", 0, 0, 0
        self._started = self._logged = 0.0

    def start(self, stage: str, total: int, unit: str, done: int) -> None:
        """See ProgressSink."""
        self._stage, self._unit, self._total, self._done, self._resumed = (
            stage,
            unit,
            total,
            done,
            done,
        )
        self._started = self._logged = time.monotonic()
        resumed = f", {done} done before" if done else ""
        logger.info("%s: %d %s%s", stage, total, unit, resumed)

    def update(self, done: int, note: str) -> None:
        """See ProgressSink."""
        self._done = done
        now = time.monotonic()
        if now - self._logged < LOG_EVERY_SECONDS:
            return
        self._logged = now
        rate = (done - self._resumed) / max(now - self._started, 1e-9)
        remaining = (self._total - done) / rate if rate > 0 else float("inf")
        logger.info(
            "%s: %d/%d %s, %.3g/s, %.0f s left %s",
            self._stage,
            done,
            self._total,
            self._unit,
            rate,
            remaining,
            note,
        )

    def finish(self) -> None:
        """See ProgressSink."""
        logger.info(
            "%s: %d/%d %s in %.1f s",
            self._stage,
            self._done,
            self._total,
            self._unit,
            time.monotonic() - self._started,
        )


_sink: ContextVar[ProgressSink | None] = ContextVar("rdm_progress_sink", default=None)


@contextmanager
def progress_to(sink: ProgressSink) -> Iterator[None]:
    """Send the progress of everything inside to a sink instead of the log."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


class Tracker:
    """Counts the finished items of a stage and passes them on."""

    def __init__(self, sink: ProgressSink, done: int) -> None:
        self._sink = sink
        self.done = done

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more finished items."""
        self.set(self.done + count, note)

    def set(self, done: int, note: str = "") -> None:
        """Say how many items are finished altogether."""
        self.done = done
        self._sink.update(done, note)


@contextmanager
def tracking(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Tracker]:
    """Report a stage: yields a Tracker that counts its finished items."""
    sink = _sink.get() or LogSink()
    sink.start(stage, total, unit, done)
    try:
        yield Tracker(sink, done)
    finally:
        sink.finish()


def current_sink() -> ProgressSink | None:
    """Return where progress goes now; None: to the log."""
    return _sink.get()
