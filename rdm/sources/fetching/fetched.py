"""Fetched photographs of one shard and failures, on a local disk, so that a killed run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rdm.sources.causes import is_passing
from rdm.sources.ledger import Row
from rdm.storage.atomic import storage_errors


class Shelf:
    """Photographs by number in the shard, each with its ledger row; and failures of the others.

    A photograph stands once its row does, which is written last. Files are renamed into place but
    not flushed to disk: after a loss of power those that do not have their size are fetched again.
    """

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "shelf"
        state = _read_json(self.folder / "failures.json") or {"tried": {}, "final": {}}
        self._tried: dict[int, list[str]] = {
            int(number): messages for number, messages in state["tried"].items()
        }
        self._final: dict[int, str] = {
            int(number): message for number, message in state["final"].items()
        }

    def put(self, number: int, row: Row, data: bytes) -> None:
        """Keep a photograph.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        self._write(f"{number:06d}", data)
        self._write(f"{number:06d}.json", json.dumps(row).encode())

    def has(self, number: int) -> bool:
        """Return whether a photograph was kept."""
        row = _read_json(self.folder / f"{number:06d}.json")
        data = self.folder / f"{number:06d}"
        return row is not None and data.exists() and data.stat().st_size == row["num_bytes"]

    def get(self, number: int) -> tuple[Row, bytes]:
        """Return the ledger row and the bytes of a photograph that was kept."""
        row = json.loads((self.folder / f"{number:06d}.json").read_bytes())
        return row, (self.folder / f"{number:06d}").read_bytes()

    def fail(self, number: int, candidate: int, message: str) -> None:
        """Note why a photograph's candidate failed; a second note of the same changes nothing."""
        messages = self._tried.setdefault(number, [])
        if len(messages) == candidate:
            messages.append(message)

    def settle(self, number: int, message: str) -> None:
        """Note why a photograph cannot be used, whatever other candidates it has."""
        self._final[number] = message

    def next_candidate(self, number: int) -> int | None:
        """Return the number of the next candidate; None if the photograph cannot be used."""
        return None if number in self._final else len(self._tried.get(number, []))

    def message(self, number: int) -> str:
        """Return why a photograph is not there, or "".

        Of several failures it is one that may pass, else the last.
        """
        messages = self._tried.get(number, [])
        passing = [message for message in messages if is_passing(message)]
        return self._final.get(number) or (passing or messages or [""])[-1]

    def save(self) -> None:
        """Write the failures to the disk.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        self._write(
            "failures.json", json.dumps({"tried": self._tried, "final": self._final}).encode()
        )

    def _write(self, name: str, data: bytes) -> None:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".{name}.tmp"
            temporary.write_bytes(data)
            os.replace(temporary, self.folder / name)


def _read_json(path: Path) -> Row | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):  # not there, or cut short by a loss of power: fetched again
        return None
    return value if isinstance(value, dict) else None
