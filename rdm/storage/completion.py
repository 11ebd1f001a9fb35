"""Completion markers, by which the same command, run again, goes on where it stopped.

A marker is written after the files that it vouches for. It holds a key (a digest of everything that
decided the result: the stage's configuration and its inputs) and the size of each output, so that a
changed setting or a truncated file is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from rdm.config import Record
from rdm.errors import StorageError
from rdm.storage.files import Folder

StatsT = TypeVar("StatsT", bound=BaseModel)


class NoStats(Record):
    """The stats of shards in which nothing is counted."""


class Marker(Record):
    """One finished shard of one stage."""

    key: str
    outputs: dict[str, int]
    stats: dict[str, JsonValue]


class Markers:
    """The markers of one stage, under `_markers/STAGE/` of a folder."""

    def __init__(self, folder: Folder, stage: str) -> None:
        self.folder = folder
        self.stage = stage

    def _path(self, shard: str) -> str:
        return f"_markers/{self.stage}/{shard}.json"

    def find(self, shard: str, key: str) -> Marker | None:
        """Return the shard's marker if its key is the same and its outputs have their full size."""
        if not self.folder.exists(self._path(shard)):
            return None

        # A damaged marker vouches for nothing: the shard is done again.
        try:
            marker = self.folder.read_record(self._path(shard), Marker)
            whole = all(
                self.folder.exists(path) and self.folder.size(path) == size
                for path, size in marker.outputs.items()
            )
        except (StorageError, ValueError):
            return None

        return marker if marker.key == key and whole else None

    def write(
        self, shard: str, key: str, outputs: Sequence[str], stats: dict[str, JsonValue]
    ) -> Marker:
        """Vouch for a finished shard: call it when every output stands."""
        marker = Marker(
            key=key, outputs={path: self.folder.size(path) for path in outputs}, stats=stats
        )
        self.folder.write_record(self._path(shard), marker)
        return marker


@dataclass(frozen=True)
class ShardWork(Generic[StatsT]):
    """One shard of a stage that is done once: where its marker goes, and what decides its result.

    Args:
        folder: the folder of the outputs and the marker.
        stage: the name of the marker's folder.
        shard: the name of the marker.
        key: a digest of everything that decides the outputs.
        stats: the kind of record that the marker keeps.
    """

    folder: Folder
    stage: str
    shard: str
    key: str
    stats: type[StatsT]


def resumable(
    task: ShardWork[StatsT],
    work: Callable[[], tuple[Sequence[str], StatsT]],
    *,
    redo: Callable[[StatsT], bool] | None = None,
) -> StatsT:
    """Return the stats of a finished shard; otherwise do its work, then vouch for it.

    Args:
        task: the shard.
        work: writes the outputs; returns their paths, all of which must exist, and the stats.
        redo: whether a finished shard is done again, judged by its stats; None: never.
    """
    finished = finished_stats(task)
    if finished is not None and not (redo and redo(finished)):
        return finished

    outputs, stats = work()
    finish(task, outputs, stats)
    return stats


def finished_stats(task: ShardWork[StatsT]) -> StatsT | None:
    """Return the stats of a finished shard; None if its work must be done."""
    marker = Markers(task.folder, task.stage).find(task.shard, task.key)
    if marker is None:
        return None

    try:
        return task.stats.model_validate(marker.stats)
    except ValidationError:
        # Of a damaged marker, or of another release: the shard is done again.
        return None


def finish(task: ShardWork[StatsT], outputs: Sequence[str], stats: StatsT) -> None:
    """Vouch for a finished shard: call it when every output stands."""
    Markers(task.folder, task.stage).write(
        task.shard, task.key, outputs, stats.model_dump(mode="json")
    )
