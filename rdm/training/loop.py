"""The training loop: one for every recipe, read from top to bottom."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdm.errors import TrainingError
from rdm.generators.provenance import Provenance
from rdm.storage.files import storage_errors
from rdm.training.checkpoints import Checkpoints, RunFacts
from rdm.training.config import TrainConfig
from rdm.training.data.batches import BatchReader
from rdm.training.data.order import DataOrder
from rdm.training.data.training_data import TrainingData
from rdm.training.engine.deepspeed_engine import Engine, MicroBatch, StepResult
from rdm.training.engine.ema import Ema
from rdm.training.engine.training_device import distributed_place
from rdm.training.finite_guard import LossGuard, SeenStep
from rdm.training.grids import NUM_PICTURES, grid_path, is_grid_step, write_grid
from rdm.training.objectives.objective import Objective
from rdm.training.planning.cost import NetworkCost, network_cost
from rdm.training.planning.throughput import device_name, flop_rates, peak_of
from rdm.training.resumed_provenance import require_same_inputs, resumed_provenance
from rdm.training.stats import StatsLog, StatsRow

MODEL = "model"


def train(config: TrainConfig, data: TrainingData, objective: Objective, out: Path) -> None:
    """Train on this rank until `max_steps` and export the averaged weights to `OUT/model`.

    A step is a function of (weights, seed, step, number of the micro-batch): a killed run goes on
    as if nothing had happened, and another number of ranks sees the same samples and noise.

    Args:
        config: the run's.
        data: training samples in shards.
        objective: the loss with its networks, the same weights on every rank.
        out: folder of the run.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint belongs to another run.
    """
    # Initialize.
    rank, num_ranks = distributed_place()
    micro_batch_size = micro_batch(config, num_ranks)
    # Rank 0 alone writes statistics; counting builds the network a second time, over shapes only.
    cost = network_cost(config) if rank == 0 else None
    engine = Engine(objective, config, micro_batch_size)
    ema = Ema(engine.owned_weights(), config.ema_decays)
    order = DataOrder([shard.num_samples for shard in data.shards], config.seed)
    reader = BatchReader(data, order)
    # Ranks on different data would average gradients of different runs without an error.
    require_same_inputs(objective.provenance, engine.least)

    # Resume from the last complete checkpoint.
    checkpoints = Checkpoints(out, config)
    step = _resume(checkpoints, engine, ema, objective)
    stats = StatsLog(out, config, step) if engine.rank == 0 else None
    guard = LossGuard(out, engine, reader)
    engine.barrier()

    # Main training loop.
    reporter = _Reporter(engine, stats, cost, step)
    losses: list[Tensor] = []
    while step < config.max_steps:
        positions, samples = _read_step(config, engine, reader, order, step)
        rate = learning_rate(config, step)
        # The adversarial term of a first stage starts at a step.
        objective.step = step
        result = engine.step(_micro_batches(config, engine, samples, micro_batch_size, step), rate)
        ema.update(engine.owned_weights())
        step += 1
        losses.append(result.metrics["loss"])
        guard.watch(SeenStep(step, positions, result, engine.gradient_norm))

        # Report status, and never save weights that are not finite, or that came of what is not.
        saves = step % config.checkpoint_every == 0 or step == config.max_steps
        if step % config.log_every == 0 or step == 1 or saves:
            guard.check()
            reporter.report(step, rate, result)
        _draw_due_grid(engine, ema, reader, out, step, stats)
        if saves:
            guard.check_weights(step)
            checkpoints.save(engine, ema, _facts(engine, step, micro_batch_size, losses))
            losses.clear()

    _finish(engine, ema, reader, stats, out)


class _Reporter:
    """Writes a line of statistics about the steps since the one before; every rank has one."""

    def __init__(
        self, engine: Engine, stats: StatsLog | None, cost: NetworkCost | None, step: int
    ) -> None:
        self._engine = engine
        self._stats = stats
        self._cost = cost
        peak = peak_of(device_name(engine.device))
        self._peak = peak and peak * engine.world_size
        self._window_start, self._reported_step = time.monotonic(), step

    def report(self, step: int, rate: float, result: StepResult) -> None:
        """Average the metrics over the ranks and write them down; every rank must call it."""
        engine = self._engine
        metrics = engine.average({name: float(value) for name, value in result.metrics.items()})

        if self._stats is not None:
            seconds = (time.monotonic() - self._window_start) / (step - self._reported_step)
            # The batch is that of all ranks, so this is the whole job's speed.
            speed = engine.config.batch_size / seconds
            norm = engine.gradient_norm
            row = {
                "step": step,
                **metrics,
                "learning_rate": rate,
                "gradient_norm": None if norm is None else float(norm),
                "seconds_per_step": seconds,
                "samples_per_second": speed,
                **flop_rates(self._cost, speed, self._peak),
            }
            self._stats.log(StatsRow.model_validate(row))
        self._window_start, self._reported_step = time.monotonic(), step


def _read_step(
    config: TrainConfig, engine: Engine, reader: BatchReader, order: DataOrder, step: int
) -> tuple[NDArray[np.int64], dict[str, np.ndarray]]:
    """Return the stream positions of this rank's samples of a step, and the samples.

    The next step's are put together while this one computes.
    """
    place = (config.batch_size, engine.rank, engine.world_size)
    positions = order.step_positions(step, *place)
    samples = reader.batch(positions)
    # After the last step nothing follows that a thread should read for.
    if step + 1 < config.max_steps:
        reader.expect(order.step_positions(step + 1, *place))
    return positions, samples


def _facts(engine: Engine, step: int, micro_batch_size: int, losses: Sequence[Tensor]) -> RunFacts:
    """Return what a checkpoint says of the run; every rank must call it.

    Args:
        engine: averages over the ranks, and has the objective with its provenance.
        step: optimizer steps done.
        micro_batch_size: samples of one forward pass.
        losses: of this rank's steps since the checkpoint before.
    """
    # The losses stayed on the device until here, where the checkpoint waits for it anyway.
    own_mean = float(torch.stack(list(losses)).double().mean())
    return RunFacts(
        step=step,
        mean_loss=engine.average({"loss": own_mean})["loss"],
        micro_batch_size=micro_batch_size,
        provenance=engine.objective.provenance.values(),
    )


def _finish(
    engine: Engine, ema: Ema, reader: BatchReader, stats: StatsLog | None, out: Path
) -> None:
    """Export the averages, and leave the job when every rank is done; every rank must call it.

    Args:
        engine: of this rank.
        ema: the averages.
        reader: ends with the job.
        stats: ends with the job; None on all ranks but the first.
        out: folder of the run.
    """
    _export_averages(engine.objective, engine, ema, engine.config, out)
    if stats is not None:
        stats.close()
    reader.close()
    engine.barrier()
    engine.close()


def _export_averages(
    objective: Objective, engine: Engine, ema: Ema, config: TrainConfig, out: Path
) -> None:
    """Export every average whole or not at all; `OUT/model` last, which marks a finished run."""
    # `ema_decay` is the first of them, and its folder marks the run as finished, so it comes last.
    for decay in reversed(config.ema_decays):
        state = engine.gather(ema.averages[decay])
        if engine.rank == 0:
            export_model(objective, state, config, out / model_name(config, decay))


def model_name(config: TrainConfig, decay: float) -> str:
    """Return the folder of an average: `model` for `ema_decay`, else `model-ema-DECAY`."""
    return MODEL if decay == config.ema_decay else f"{MODEL}-ema-{decay:.12g}"


def export_model(
    objective: Objective, state: dict[str, Tensor], config: TrainConfig, final: Path
) -> None:
    """Write fp32 weights by parameter name as a model directory, replacing an older one.

    Args:
        objective: knows the layout of the model.
        state: weights by parameter name.
        config: written beside them.
        final: the folder.
    """
    # Beside the final folder, because a rename works within one file system only.
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
        # Not from zero, which would waste the first step.
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
    """Load the last complete checkpoint, which rank 0 verifies for all; return its step, or 0."""
    # Verifying reads every byte: done by all ranks, it would load a shared disk once for each.
    found = checkpoints.newest() if engine.rank == 0 else None
    step = engine.agree(found.step if found else 0)
    if step:
        checkpoint = found or checkpoints.at(step)
        recorded = Provenance.model_validate(checkpoint.state.provenance)
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
    """Return this rank's share of a step; noise goes by the micro-batch's global number."""
    share = {name: engine.staged(array) for name, array in samples.items()}
    found: list[MicroBatch] = []
    for place in range(engine.accumulation):
        # Two ranks with one micro-batch each draw the noise that one rank draws for two.
        number = engine.rank * engine.accumulation + place
        rows = slice(place * micro_batch_size, (place + 1) * micro_batch_size)
        batch = {name: values[rows] for name, values in share.items()}
        generator = torch.Generator(engine.device).manual_seed(
            _seed(config.seed, "step", step, number)
        )
        found.append((batch, generator, _seed(config.seed, "dropout", step, number)))
    return found


def _draw_due_grid(
    engine: Engine, ema: Ema, reader: BatchReader, out: Path, step: int, stats: StatsLog | None
) -> None:
    """Draw the samples that a run shows of itself, if they are due; every rank must call it.

    Args:
        engine: of this rank.
        ema: whose first average draws.
        reader: of the samples whose conditions are drawn for.
        out: folder of the run.
        step: optimizer steps done.
        stats: where pictures are passed on to; None on all ranks but the first.
    """
    if not is_grid_step(step, engine.config.grids_per_decade, engine.config.max_steps):
        return
    state = engine.gather(ema.averages[ema.decays[0]])
    if stats is not None:
        # Always the first samples of the stream, so that grids can be compared.
        arrays = reader.batch(np.arange(min(NUM_PICTURES, reader.num_samples), dtype=np.int64))
        batch = {name: torch.from_numpy(array).to(engine.device) for name, array in arrays.items()}
        pictures = engine.objective.preview(state, batch)
        if pictures is not None:
            write_grid(pictures, grid_path(out, step))
            stats.log_grid(step, grid_path(out, step))
    engine.barrier()


def _seed(*parts: object) -> int:
    # A hash: sums of step and number would give different micro-batches the same noise.
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
