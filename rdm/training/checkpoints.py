"""Checkpoints: whole or absent, verified by size, the newest few kept."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rdm.errors import TrainingError
from rdm.storage.files import storage_errors
from rdm.training.ema import Ema
from rdm.training.engine import Engine

_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int


class Checkpoints:
    """The checkpoints of a run, `OUT/checkpoints/step-000100/`.

    All ranks write into a temporary folder, rank 0 adds the EMA weights and a `state.json` with the size of every file,
    and renames the folder. Killed anywhere, the last complete one still stands.
    """

    def __init__(self, out: Path, config_digest: str, keep: int) -> None:
        self.directory = out / "checkpoints"
        self.config_digest = config_digest
        self.keep = keep

    def complete(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first; half-written and damaged ones are passed over."""
        found = []
        for path in sorted(self.directory.glob(f"{_PREFIX}*")):
            state = self._read_state(path)
            if state is not None and all(
                (path / name).is_file() and (path / name).stat().st_size == size
                for name, size in state["files"].items()
            ):
                found.append(Checkpoint(path, state["step"]))
        return found

    def save(self, engine: Engine, ema: Ema | None, step: int) -> None:
        """Write a checkpoint; every rank must call it. `ema` is rank 0's."""
        final = self.directory / f"{_PREFIX}{step:08d}"
        temporary = self.directory / f".{final.name}.tmp"
        with storage_errors(temporary):
            if engine.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            engine.barrier()
            engine.save(temporary)
            engine.barrier()
            if engine.rank == 0:
                assert ema is not None
                save_file(_contiguous(ema.state()), temporary / "ema.safetensors")
                self._write_state(temporary, engine, ema, step)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
                self._prune()
            engine.barrier()

    def load(self, checkpoint: Checkpoint, engine: Engine, ema: Ema | None) -> None:
        """Restore engine and EMA.

        Raises:
            TrainingError: it belongs to another configuration or another number of ranks.
        """
        state = self._read_state(checkpoint.path)
        assert state is not None
        if state["config_digest"] != self.config_digest:
            raise TrainingError(
                "the checkpoint belongs to another configuration",
                where=checkpoint.path,
                fix="give --out a new folder, or the settings in this one's run.json",
            )
        if state["world_size"] != engine.world_size:
            raise TrainingError(
                f"the checkpoint was written by {state['world_size']} ranks, this run has {engine.world_size}",
                where=checkpoint.path,
                fix=f"--set num_ranks={state['world_size']}",
            )
        engine.load(checkpoint.path)
        if ema is not None:
            ema.load(load_file(checkpoint.path / "ema.safetensors"), state["ema_updates"])

    def _write_state(self, directory: Path, engine: Engine, ema: Ema, step: int) -> None:
        files = {
            path.relative_to(directory).as_posix(): path.stat().st_size
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        state = {
            "step": step,
            "world_size": engine.world_size,
            "config_digest": self.config_digest,
            "ema_updates": ema.num_updates,
            "files": files,
        }
        (directory / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    def _read_state(self, path: Path) -> dict | None:
        try:
            return json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _prune(self) -> None:
        for checkpoint in self.complete()[: -self.keep]:
            shutil.rmtree(checkpoint.path, ignore_errors=True)


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
