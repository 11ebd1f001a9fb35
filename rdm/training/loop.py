"""The training loop: one for every recipe, read from top to bottom."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from rdm.config import digest_json
from rdm.errors import TrainingError
from rdm.storage.files import storage_errors
from rdm.training.checkpoints import Checkpoints
from rdm.training.ema import Ema
from rdm.training.engine import Engine
from rdm.training.objective import Objective, TrainingData
from rdm.training.order import BatchReader, DataOrder
from rdm.training.recipes import TrainConfig

STATS = "stats.jsonl"
MODEL = "model"


def train(config: TrainConfig, data: TrainingData, objective: Objective, out: Path) -> None:
    """Train on this rank until `max_steps` and export the EMA weights to `OUT/model`.

    A step is a function of (weights, seed, step, rank), so a run that is killed and started again continues as if
    nothing had happened.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint belongs to another run.
    """
    # Initialize.
    engine = Engine(objective, config)
    ema = Ema(engine.objective, config.ema_decay) if engine.rank == 0 else None
    order = DataOrder([shard.num_samples for shard in data.shards], config.seed)
    reader = BatchReader(data, order)

    # Resume from the last complete checkpoint.
    checkpoints = Checkpoints(out, run_digest(config), config.keep_checkpoints)
    step = 0
    if found := checkpoints.complete():
        checkpoints.load(found[-1], engine, ema)
        step = found[-1].step
    if engine.rank == 0:
        _truncate_stats(out / STATS, step)
    engine.barrier()

    # Main training loop.
    window_started, window_steps = time.monotonic(), 0
    while step < config.max_steps:
        positions = order.step_positions(step, config.batch_size, engine.rank, engine.world_size)
        batch = {name: torch.from_numpy(array) for name, array in reader.batch(positions).items()}
        generator = torch.Generator(engine.device).manual_seed(_seed(config.seed, "step", step, engine.rank))
        torch.manual_seed(_seed(config.seed, "dropout", step, engine.rank))
        rate = learning_rate(config, step)
        metrics = engine.step(batch, generator, rate)
        step, window_steps = step + 1, window_steps + 1
        if ema is not None:
            ema.update(engine.objective)

        # Report status, and never save a checkpoint of weights whose loss was not looked at.
        saves = step % config.checkpoint_every == 0 or step == config.max_steps
        if step % config.log_every == 0 or step == 1 or saves:
            values = engine.average({name: float(value) for name, value in metrics.items()})
            if not all(math.isfinite(value) for value in values.values()):
                raise TrainingError(
                    f"the loss is not finite at step {step}: {values}",
                    where=f"stream positions {positions[0]}..{positions[-1]} of seed {config.seed}",
                    fix="lower learning_rate, or look at those samples; the last checkpoint stands",
                )
            if engine.rank == 0:
                seconds = (time.monotonic() - window_started) / window_steps
                _append_stats(
                    out / STATS,
                    {
                        "step": step,
                        **values,
                        "learning_rate": rate,
                        "gradient_norm": engine.gradient_norm,
                        "seconds_per_step": seconds,
                        "samples_per_second": config.batch_size / seconds,
                    },
                )
            window_started, window_steps = time.monotonic(), 0
        if saves:
            checkpoints.save(engine, ema, step)

    # Export, once, whole or absent.
    if ema is not None:
        export_model(engine.objective, ema, config, out)
    engine.barrier()
    engine.close()


def export_model(objective: Objective, ema: Ema, config: TrainConfig, out: Path) -> None:
    """Write the EMA weights as a model directory `OUT/model`, replacing an older one."""
    final, temporary = out / MODEL, out / f".{MODEL}.tmp"
    with storage_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        objective.export(temporary, ema.state())
        (temporary / "train_config.json").write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up from 1/warmup, then cosine to zero or constant."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(config.max_steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def run_digest(config: TrainConfig) -> str:
    """Return what must agree for a run to be continued: everything but its length and how often it logs and saves."""
    free = {"max_steps", "checkpoint_every", "keep_checkpoints", "log_every", "num_ranks"}
    return digest_json({name: value for name, value in config.model_dump(mode="json").items() if name not in free})


def read_stats(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `stats.jsonl`; a half-written last line is left out."""
    path = out / STATS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _truncate_stats(path: Path, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [row for row in read_stats(path.parent) if row["step"] <= step]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _append_stats(path: Path, row: dict[str, Any]) -> None:
    with storage_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
