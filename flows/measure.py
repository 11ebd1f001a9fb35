"""What a stage took: wall-clock seconds and peak memory of this process with all its children."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from rdm.progress import StageFacts, StageRecord
from rdm.storage import Folder

SAMPLE_SECONDS = 0.5


class StageLog:
    """Records of finished stages, one JSON file each, which a resumed run still knows."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageFacts]:
        """Measure a stage; what the body puts into the yielded dict is recorded with it.

        A stage that finished before keeps its record when this time it only found its work done.
        """
        facts: StageFacts = {}
        with _PeakMemory() as memory:
            started = time.monotonic()
            yield facts
            seconds = time.monotonic() - started
        previous = self.read(name)
        if previous is not None and previous.facts == facts and previous.seconds >= seconds:
            return
        record = StageRecord(name=name, seconds=seconds, peak_memory_bytes=memory.peak, facts=facts)
        self.folder.write_json(f"{name}.json", record.to_json())

    def read(self, name: str) -> StageRecord | None:
        """Return a stage's record; None where it has not finished yet."""
        if not self.folder.exists(f"{name}.json"):
            return None
        return StageRecord.model_validate(self.folder.read_json(f"{name}.json"))


class _PeakMemory:
    """Samples the process tree's proportional set size, which counts shared memory once."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, _tree_bytes())
            if self._stop.wait(SAMPLE_SECONDS):
                return


def _tree_bytes() -> int:
    total = 0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.uss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
