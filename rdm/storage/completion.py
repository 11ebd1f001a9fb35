"""Completion markers: what makes the same command, run again, go on where it stopped.

A marker is written after the files that it vouches for. It holds a key (a digest of everything that decided the
result: the stage's configuration and its inputs) and the size of each output, so that a changed setting or a
truncated file is done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdm.config import Config
from rdm.errors import StorageError
from rdm.storage.files import Folder


class Marker(Config):
    """One finished shard of one stage."""

    key: str
    outputs: dict[str, int]
    stats: dict[str, Any]


class Markers:
    """The markers of one stage, under `_markers/STAGE/` of a folder."""

    def __init__(self, folder: Folder, stage: str) -> None:
        self.folder = folder
        self.stage = stage

    def _path(self, shard: str) -> str:
        return f"_markers/{self.stage}/{shard}.json"

    def find(self, shard: str, key: str) -> Marker | None:
        """Return the shard's marker if it was made with the same key and its outputs are all there at full size."""
        if not self.folder.exists(self._path(shard)):
            return None
        try:
            marker = Marker.model_validate(self.folder.read_json(self._path(shard)))
            whole = all(
                self.folder.exists(path) and self.folder.size(path) == size for path, size in marker.outputs.items()
            )
        except (StorageError, ValueError):
            return None  # a damaged marker vouches for nothing: the shard is done again
        return marker if marker.key == key and whole else None

    def write(self, shard: str, key: str, outputs: Sequence[str], stats: dict[str, Any]) -> Marker:
        """Vouch for a finished shard: call it when every output stands."""
        marker = Marker(key=key, outputs={path: self.folder.size(path) for path in outputs}, stats=stats)
        self.folder.write_json(self._path(shard), marker.model_dump(mode="json"))
        return marker
