"""The training loop: one for every recipe, read from top to bottom."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdm.errors import TrainingError
from rdm.generators.provenance import Provenance
from rdm.storage.files import storage_errors
from rdm.training.checkpoints import Checkpoints
from rdm.training.config import TrainConfig
from rdm.training.data.batches import BatchReader
from rdm.training.data.order import DataOrder
from rdm.training.data.training_data import TrainingData
from rdm.training.engine.deepspeed_engine import Engine, MicroBatch
from rdm.training.engine.device import distributed_place
from rdm.training.engine.ema import Ema
from rdm.training.finite_guard import LossGuard, SeenStep
from rdm.training.grids import NUM_PICTURES, grid_path, is_grid_step, write_grid
from rdm.training.objectives.objective import Objective
from rdm.training.planning.cost import network_cost
from rdm.training.planning.throughput import flop_rates, peak_of
from rdm.training.provenance import require_same_inputs, resumed_provenance
from rdm.training.stats import StatsLog

MODEL = "model"


def train(config: TrainConfig, data: TrainingData, objective: Objective, out: Path) -> None:
    """Train on this rank until `max_steps` and export the averaged weights to `OUT/model`.

    A step is a function of (weights, seed, step, number of the micro-batch), so a run that is
    killed and started again continues as if nothing had happened, and one that goes on with another
    number of ranks sees the same samples with the same noise.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint belongs to another run.
    """
    # Initialize.
    rank, num_ranks = distributed_place()
    micro_batch_size = micro_batch(config, num_ranks)
    cost = network_cost(config) if rank == 0 else None
    engine = Engine(objective, config, micro_batch_size)
    ema = Ema(engine.owned_weights(), config.ema_decays)
    order = DataOrder([shard.num_samples for shard in data.shards], config.seed)
    reader = BatchReader(data, order)
    require_same_inputs(objective.provenance, engine.least)

    # Resume from the last complete checkpoint.
    checkpoints = Checkpoints(out, config)
    step = _resume(checkpoints, engine, ema, objective)
    stats = StatsLog(out, config, step) if engine.rank == 0 else None
    peak = peak_of(engine.device)
    guard = LossGuard(out, engine, reader)
    engine.barrier()

    # Main training loop.
    window_started, window_steps = time.monotonic(), 0
    losses: list[Tensor] = []
    while step < config.max_steps:
        positions = order.step_positions(step, config.batch_size, engine.rank, engine.world_size)
        rate = learning_rate(config, step)
        samples = reader.batch(positions)
        if step + 1 < config.max_steps:  # put together while this step computes
            reader.expect(
                order.step_positions(step + 1, config.batch_size, engine.rank, engine.world_size)
            )
        objective.step = step
        result = engine.step(_micro_batches(config, engine, samples, micro_batch_size, step), rate)
        ema.update(engine.owned_weights())
        step, window_steps = step + 1, window_steps + 1
        losses.append(result.metrics["loss"])
        guard.watch(SeenStep(step, positions, result, engine.gradient_norm))

        # Report status, and never save weights that are not finite, or that came of what is not.
        saves = step % config.checkpoint_every == 0 or step == config.max_steps
        if step % config.log_every == 0 or step == 1 or saves:
            guard.check()
            values = engine.average({name: float(value) for name, value in result.metrics.items()})
            if stats is not None:
                seconds = (time.monotonic() - window_started) / window_steps
                speed = config.batch_size / seconds
                norm = engine.gradient_norm
                stats.log(
                    {
                        "step": step,
                        **values,
                        "learning_rate": rate,
                        "gradient_norm": None if norm is None else float(norm),
                        "seconds_per_step": seconds,
                        "samples_per_second": speed,
                        **flop_rates(cost, speed, peak and peak * engine.world_size),
                    }
                )
            window_started, window_steps = time.monotonic(), 0
        if is_grid_step(step, config.grids_per_decade, config.max_steps):
            _draw_grid(engine, ema, reader, out, step, stats)
        if saves:
            guard.check_weights(step)
            mean_loss = engine.average({"loss": float(torch.stack(losses).double().mean())})["loss"]
            facts = {"step": step, "mean_loss": mean_loss, "micro_batch_size": micro_batch_size}
            checkpoints.save(engine, ema, {**facts, "provenance": objective.provenance.values()})
            losses.clear()

    _export_averages(objective, engine, ema, config, out)
    if stats is not None:
        stats.close()
    reader.close()
    engine.barrier()
    engine.close()


def _export_averages(
    objective: Objective, engine: Engine, ema: Ema, config: TrainConfig, out: Path
) -> None:
    """Export every average once, whole or absent; OUT/model last: where it stands, the run is
    finished."""
    for decay in reversed(config.ema_decays):
        state = engine.gather(ema.averages[decay])
        if engine.rank == 0:
            export_model(objective, state, config, out / model_name(config, decay))


def model_name(config: TrainConfig, decay: float) -> str:
    """Return the folder of an average's weights: `model` for `ema_decay`, `model-ema-DECAY` for the
    others."""
    return MODEL if decay == config.ema_decay else f"{MODEL}-ema-{decay:.12g}"


def export_model(
    objective: Objective, state: dict[str, Tensor], config: TrainConfig, final: Path
) -> None:
    """Write fp32 weights by parameter name as a model directory, replacing an older one."""
    temporary = final.with_name(f".{final.name}.tmp")
    with storage_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        objective.export(temporary, state)
        (temporary / "train_config.json").write_text(
            config.model_dump_json(indent=1) + "\n", encoding="utf-8"
        )
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up from 1/warmup, then by `lr_schedule`.

    wsd ("warmup, stable, decay", Hu et al. 2024) is constant and falls in a line to zero over the
    last `decay_share`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    if config.lr_schedule == "wsd":
        left = (config.max_steps - step) / (config.decay_share * config.max_steps)
        return config.learning_rate * min(1.0, left)
    progress = (step - config.warmup_steps) / max(config.max_steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def micro_batch(config: TrainConfig, num_ranks: int, recorded: int | None = None) -> int:
    """Return the samples of one forward pass.

    A run keeps the size that it began with, because the noise is drawn per micro-batch: on fewer
    ranks it accumulates.

    Args:
        config: the run's.
        num_ranks: of the whole job.
        recorded: the size that the run had before, if it is being resumed.

    Raises:
        TrainingError: the ranks cannot share `batch_size`, or `micro_batch_size` does not divide a
            rank's share.
    """
    share, rest = divmod(config.batch_size, num_ranks)
    if rest:
        raise TrainingError(
            f"batch_size {config.batch_size} cannot be shared by {num_ranks} ranks",
            fix="--set batch_size to a multiple of the number of ranks",
        )
    if config.micro_batch_size is None:
        return recorded if recorded and share % recorded == 0 else share
    if share % config.micro_batch_size:
        raise TrainingError(
            f"a rank's share of {share} samples is no multiple of micro_batch_size "
            f"{config.micro_batch_size}",
            fix=f"--set micro_batch_size to a divisor of {share}",
        )
    return config.micro_batch_size


def _resume(checkpoints: Checkpoints, engine: Engine, ema: Ema, objective: Objective) -> int:
    """Take up the last complete checkpoint, which rank 0 verifies for all; return its step, 0 where
    there is none."""
    found = checkpoints.newest() if engine.rank == 0 else None
    step = engine.agree(found.step if found else 0)
    if step:
        checkpoint = found or checkpoints.at(step)
        recorded = Provenance.model_validate(checkpoint.state["provenance"])
        objective.provenance = resumed_provenance(recorded, objective.provenance, checkpoint.path)
        checkpoints.load(checkpoint, engine, ema)
    return step


def _micro_batches(
    config: TrainConfig,
    engine: Engine,
    samples: dict[str, np.ndarray],
    micro_batch_size: int,
    step: int,
) -> list[MicroBatch]:
    """Return this rank's share of a step; the noise is that of the micro-batch's number in the
    whole batch."""
    share = {name: engine.staged(array) for name, array in samples.items()}
    found: list[MicroBatch] = []
    for place in range(engine.accumulation):
        number = engine.rank * engine.accumulation + place
        rows = slice(place * micro_batch_size, (place + 1) * micro_batch_size)
        batch = {name: values[rows] for name, values in share.items()}
        generator = torch.Generator(engine.device).manual_seed(
            _seed(config.seed, "step", step, number)
        )
        found.append((batch, generator, _seed(config.seed, "dropout", step, number)))
    return found


def _draw_grid(
    engine: Engine, ema: Ema, reader: BatchReader, out: Path, step: int, stats: StatsLog | None
) -> None:
    state = engine.gather(ema.averages[ema.decays[0]])
    if stats is not None:
        arrays = reader.batch(np.arange(min(NUM_PICTURES, reader.num_samples), dtype=np.int64))
        batch = {name: torch.from_numpy(array).to(engine.device) for name, array in arrays.items()}
        pictures = engine.objective.preview(state, batch)
        if pictures is not None:
            write_grid(pictures, grid_path(out, step))
            stats.log_grid(step, grid_path(out, step))
    engine.barrier()


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
