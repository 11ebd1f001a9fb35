"""Checkpoints: atomic, read back when written, safetensors, equal for any number of ranks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rdm.config import Record, digest_json
from rdm.errors import StorageError, TrainingError
from rdm.storage.files import sha256_file, storage_errors
from rdm.training.config import TrainConfig
from rdm.training.engine.deepspeed_engine import Engine, OptimizerState
from rdm.training.engine.ema import Ema

logger = logging.getLogger(__name__)

FORMAT = "retrieval-diffusion-checkpoint"
_NUM_HASHERS = 4
_PREFIX = "step-"
_STATE = "state.json"
_WEIGHTS = "weights.safetensors"
_FREE_SETTINGS = frozenset(
    {
        "max_steps",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_best",
        "log_every",
        "trackers",
        "grids_per_decade",
        "num_ranks",
        "zero_stage",
        "micro_batch_size",
        "activation_checkpointing",
        "device",
    }
)


def run_digest(config: TrainConfig) -> str:
    """Return a digest of all settings but length, records and who does the work."""
    values = config.model_dump(mode="json")
    return digest_json(
        {name: value for name, value in values.items() if name not in _FREE_SETTINGS}
    )


class CheckpointFile(Record):
    """A file of a checkpoint, as it was written."""

    num_bytes: int
    sha256: str


class RunFacts(Record):
    """What the loop tells a checkpoint about the run."""

    step: int
    """Optimizer steps done."""
    mean_loss: float
    """Of the training steps since the checkpoint before."""
    micro_batch_size: int
    provenance: dict[str, JsonValue]
    """A `Provenance`, as JSON values."""


class CheckpointState(RunFacts):
    """`state.json`: everything about a checkpoint that is no tensor."""

    format: str
    files: dict[str, CheckpointFile]
    optimizer_counts: dict[str, float]
    world_size: int
    """Ranks that wrote it."""
    zero_stage: int
    ema_updates: int
    loss_scale: dict[str, int | float] | None
    """Of fp16; None in other precisions."""
    config_digest: str
    """See `run_digest`."""
    config: dict[str, JsonValue]
    """As the release that wrote it has it; `config_digest` decides whether a run may go on."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, with what its `state.json` says."""

    path: Path
    state: CheckpointState

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    @property
    def mean_loss(self) -> float:
        """The mean training loss of the steps since the checkpoint before."""
        return self.state.mean_loss


class Checkpoints:
    """The checkpoints of a run, `OUT/checkpoints/step-00000100/`.

    A checkpoint holds `weights.safetensors`, `ema-DECAY.safetensors` and
    `optimizer-KIND.safetensors`, fp32 tensors by parameter name, and a `state.json` with everything
    else: configuration, provenance (the database's version among it), step, and the SHA-256 of each
    file. Rank 0 writes all of it into a temporary folder, reads every tensor back, and renames the
    folder. Killed anywhere, the last complete one still stands.
    """

    def __init__(self, out: Path, config: TrainConfig) -> None:
        self.directory = out / "checkpoints"
        self.config = config

    def complete(self) -> list[Checkpoint]:
        """Return the checkpoints whose files are all there at full size, oldest first."""
        found = []
        # The steps in the names are padded with zeros, so that sorting names sorts steps. Temporary
        # folders start with a dot and do not match.
        for path in sorted(self.directory.glob(f"{_PREFIX}*")):
            try:
                values = json.loads((path / _STATE).read_text(encoding="utf-8"))
                state = CheckpointState.model_validate(values)
                # Sizes only: hashing every checkpoint here would read the whole disk at each save.
                whole = state.format == FORMAT and all(
                    (path / name).stat().st_size == entry.num_bytes
                    for name, entry in state.files.items()
                )
            except (OSError, ValueError):  # pydantic's errors are ValueErrors
                continue
            if whole:
                found.append(Checkpoint(path, state))
        return found

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose bytes are intact; a warning names damaged ones.

        Raises:
            TrainingError: it belongs to another configuration.
        """
        for checkpoint in reversed(self.complete()):
            # Before the hashes, which read gigabytes: another configuration is refused at once.
            if checkpoint.state.config_digest != run_digest(self.config):
                raise TrainingError(
                    "the checkpoint belongs to another configuration",
                    where=checkpoint.path,
                    fix="give --out a new folder, or the settings in this one's run.json",
                )
            if changed := _changed_file(checkpoint):
                logger.warning("%s is damaged: the checkpoint before it is used", changed)
                continue
            return checkpoint
        return None

    def at(self, step: int) -> Checkpoint:
        """Return the complete checkpoint of a step, which another rank has verified."""
        for checkpoint in self.complete():
            if checkpoint.step == step:
                return checkpoint
        raise TrainingError(
            f"this rank does not see the checkpoint of step {step}",
            where=self.directory,
            fix="OUT must be a folder that every machine of the job mounts",
        )

    def save(self, engine: Engine, ema: Ema, facts: RunFacts) -> None:
        """Write a checkpoint; every rank must call it.

        Args:
            engine: holds weights and the optimizer's memory.
            ema: this rank's part of the averages.
            facts: what the loop knows of the run.

        Raises:
            StorageError: the disk is full, or does not give back what was written; the last
                checkpoint still stands.
        """
        final = self.directory / f"{_PREFIX}{facts.step:08d}"
        temporary = self.directory / f".{final.name}.tmp"
        with (
            _removed_on_error(temporary),
            storage_errors(final),
            ThreadPoolExecutor(_NUM_HASHERS) as hashers,
        ):
            if engine.rank == 0:
                # A killed run may have left one of the same step.
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)

            # Every rank sends its part of each file; rank 0 hashes one while it writes the next.
            described = {}
            for name, tensors in _contents(engine, ema):
                if engine.rank == 0:
                    _write_verified(temporary / name, tensors, facts.step)
                    # while the next file is written
                    described[name] = hashers.submit(_describe, temporary / name)
                del tensors

            # The rename makes the checkpoint complete, so it comes last.
            counts = engine.optimizer_counts()
            if engine.rank == 0:
                state = CheckpointState(
                    format=FORMAT,
                    **facts.model_dump(),
                    files={name: digest.result() for name, digest in described.items()},
                    optimizer_counts=counts,
                    world_size=engine.world_size,
                    zero_stage=self.config.zero_stage,
                    ema_updates=ema.num_updates,
                    loss_scale=engine.loss_scale,
                    config_digest=run_digest(self.config),
                    config=self.config.model_dump(mode="json"),
                )
                _write_state(temporary / _STATE, state)
                # A rename cannot replace a folder that is not empty: one of this step that was
                # found damaged goes first.
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
                # After the rename: a failed write must not leave fewer than were promised.
                self._prune()
        # If rank 0 fails to write, the others wait here to be ended, instead of training on.
        engine.barrier()

    def load(self, checkpoint: Checkpoint, engine: Engine, ema: Ema) -> None:
        """Restore engine and averages, whatever the number of ranks that wrote the checkpoint.

        Raises:
            TrainingError: a parameter is missing, or has another shape.
        """
        kinds = [name for name in checkpoint.state.files if name.startswith("optimizer-")]

        # Read a tensor at a time: a rank never holds a whole file.
        with contextlib.ExitStack() as stack:
            try:
                read = {
                    name: _Reader(checkpoint.path / name, stack) for name in checkpoint.state.files
                }
                moments = {
                    name.removeprefix("optimizer-").removesuffix(".safetensors"): read[name]
                    for name in kinds
                }
                engine.load(
                    read[_WEIGHTS].__getitem__,
                    OptimizerState(moments, checkpoint.state.optimizer_counts),
                )
                for decay, averages in ema.averages.items():
                    engine.scatter(read[_ema_file(decay)].__getitem__, averages)
            except (SafetensorError, KeyError, RuntimeError) as error:
                raise TrainingError(
                    f"the checkpoint does not fit this run: {type(error).__name__}: {error}",
                    where=checkpoint.path,
                    fix="delete this checkpoint: the one before it is then used",
                ) from error

        # The warm-up of the averages goes on where it was; from 0 it would forget them.
        ema.num_updates = checkpoint.state.ema_updates
        engine.loss_scale = checkpoint.state.loss_scale

    def _prune(self) -> None:
        found = self.complete()
        # The newest ones to resume from; the best one, because a run may end worse than it was.
        kept = {checkpoint.step for checkpoint in found[-self.config.keep_checkpoints :]}
        if self.config.keep_best:
            kept.add(min(found, key=lambda checkpoint: checkpoint.mean_loss).step)
        for checkpoint in found:
            if checkpoint.step not in kept:
                shutil.rmtree(checkpoint.path, ignore_errors=True)


class _Reader(Mapping[str, Tensor]):
    """The tensors of a safetensors file, read one at a time."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self._file = stack.enter_context(safe_open(path, framework="pt"))
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _contents(engine: Engine, ema: Ema) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each file's name and tensors, one at a time: rank 0 then never holds more than one copy
    of the weights."""
    yield _WEIGHTS, engine.gather(engine.owned_weights())
    for decay, averages in ema.averages.items():
        yield _ema_file(decay), engine.gather(averages)
    for kind in engine.moment_kinds():
        yield f"optimizer-{kind}.safetensors", engine.gather_moments(kind)


def _ema_file(decay: float) -> str:
    return f"ema-{decay:.12g}.safetensors"


def _write_verified(path: Path, tensors: Mapping[str, Tensor], step: int) -> None:
    """Write a file through to the disk, and compare what is read back bit by bit."""
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            path,
            {"step": str(step)},
        )
    except SafetensorError as error:
        # the library wraps the cause: say it as any other failed write
        _raise_write_error(path, error)

    with open(path, "rb+") as file:
        os.fsync(file.fileno())

    # Compare bits, as whole numbers: no number equals nan.
    with safe_open(path, framework="pt") as stored:
        same = set(stored.keys()) == set(tensors) and all(
            torch.equal(
                stored.get_tensor(name).view(torch.int32), tensor.contiguous().view(torch.int32)
            )
            for name, tensor in tensors.items()
        )
    if not same:
        raise StorageError(
            "the disk does not give back what was written",
            where=path,
            fix="check the disk; the last checkpoint stands",
        )


def _write_state(path: Path, state: CheckpointState) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(state.to_json(), indent=1) + "\n")
        # The rename may reach the disk before the data does: without fsync, a power failure could
        # leave a complete-looking folder with an empty file.
        file.flush()
        os.fsync(file.fileno())


def _describe(path: Path) -> CheckpointFile:
    return CheckpointFile(num_bytes=path.stat().st_size, sha256=sha256_file(path))


def _raise_write_error(path: Path, error: Exception) -> None:
    """Raise the OSError that the library's text names, as in `No space left (os error 28)`."""
    # safetensors raises its own kind for a full disk and gives the cause in the text only.
    text = str(error)
    if "os error " in text:
        number = int(text.split("os error ")[1].split(")")[0])
        raise OSError(number, os.strerror(number), str(path)) from error
    raise error


def _changed_file(checkpoint: Checkpoint) -> Path | None:
    for name, entry in checkpoint.state.files.items():
        if sha256_file(checkpoint.path / name) != entry.sha256:
            return checkpoint.path / name
    return None


@contextlib.contextmanager
def _removed_on_error(directory: Path) -> Iterator[None]:
    try:
        yield
    # Also on Ctrl-C: a half-written folder of gigabytes must not stay behind.
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
