"""Progress in the Prefect UI: one progress artifact per stage, and the log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from rdm.progress import LogSink, ProgressSink, current_sink, progress_to

UPDATE_SECONDS = 5.0


class ArtifactSink:
    """Writes stages to progress artifacts, every five seconds at most, and passes them on."""

    def __init__(self, onward: ProgressSink) -> None:
        self._onward = onward
        self._artifact: UUID | None = None
        self._total = 1
        self._done = 0
        self._updated = 0.0

    def start(self, stage: str, total: int, unit: str, done: int) -> None:
        """See ProgressSink."""
        self._onward.start(stage, total, unit, done)
        self._total, self._done, self._updated = max(total, 1), done, time.monotonic()
        # Prefect refuses keys of other characters.
        key = re.sub(r"[^a-z0-9]+", "-", stage.lower())
        created = create_progress_artifact(
            progress=100 * done / self._total, key=key, description=f"{stage}: {total} {unit}"
        )
        self._artifact = created if isinstance(created, UUID) else None

    def update(self, done: int, note: str) -> None:
        """See ProgressSink."""
        self._onward.update(done, note)
        self._done = done
        if time.monotonic() - self._updated >= UPDATE_SECONDS:
            self._publish()

    def finish(self) -> None:
        """See ProgressSink."""
        self._publish()
        self._onward.finish()

    def _publish(self) -> None:
        self._updated = time.monotonic()
        if self._artifact is not None:
            update_progress_artifact(
                self._artifact, progress=min(100.0, 100 * self._done / self._total)
            )


@contextmanager
def artifact_progress() -> Iterator[None]:
    """Send the progress of a flow run to artifacts, and to wherever it went before."""
    with progress_to(ArtifactSink(current_sink() or LogSink())):
        yield
