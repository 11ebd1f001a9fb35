"""What a step of `rdm-tiny` pays for averages, guard, statistics, grids and checkpoints, against
the step itself."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.training_ranks import build_engine, micro_batches, run_ranks, tiny_config
from rdm.training.checkpoints import Checkpoints, RunFacts
from rdm.training.engine.deepspeed_engine import Engine, StepResult
from rdm.training.engine.ema import Ema
from rdm.training.stats import StatsLog, StatsRow

ROUNDS = 25


def run() -> str:
    """Return the shares in words."""
    found = run_ranks(__name__, 1, 2)[0]
    step = found["step"]
    per_step = {
        "averages": found["averages"],
        "statistics": found["statistics"] / found["log_every"],
        "checkpoints": found["checkpoint"] / found["checkpoint_every"],
    }
    shares = ", ".join(f"{name} {100 * seconds / step:.2f}%" for name, seconds in per_step.items())
    rate = found["checkpoint_bytes"] / found["checkpoint"] / 1e6
    return (
        f"{100 * sum(per_step.values()) / step:.2f}% of a step of {step * 1e3:.0f} ms "
        f"({shares}); a checkpoint of "
        f"{found['checkpoint_bytes'] / 1e6:.0f} MB takes {found['checkpoint']:.2f} s, "
        f"{rate:.0f} MB/s"
    )


def measure() -> dict[str, float]:
    """Return seconds of each part, medians over alternating rounds."""
    config = tiny_config()
    engine = build_engine(config)
    ema = Ema(engine.owned_weights(), config.ema_decays)
    times: dict[str, list[float]] = {
        name: [] for name in ("step", "averages", "statistics", "checkpoint")
    }
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        stats, checkpoints = StatsLog(out, config, 0), Checkpoints(out, config)
        for number in range(ROUNDS + 2):
            batch = micro_batches(config, engine, number)
            results: list[StepResult] = []
            seconds = {
                "step": _seconds(
                    lambda batch=batch, results=results: results.append(engine.step(batch, 1e-4))
                ),
                "averages": _seconds(lambda: ema.update(engine.owned_weights())),
                "statistics": _seconds(lambda results=results: _report(engine, stats, results[0])),
            }
            if number % 5 == 0:
                facts = RunFacts(step=number, mean_loss=1.0, micro_batch_size=32, provenance={})
                seconds["checkpoint"] = _seconds(
                    lambda facts=facts: checkpoints.save(engine, ema, facts)
                )
                written = checkpoints.complete()[-1].path
            if number >= 2:  # the first steps allocate
                for name, value in seconds.items():
                    times[name].append(value)
        num_bytes = sum(path.stat().st_size for path in written.iterdir())
    engine.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    settings = {"log_every": config.log_every, "checkpoint_every": config.checkpoint_every}
    return {**medians, **settings, "checkpoint_bytes": num_bytes}


def _report(engine: Engine, stats: StatsLog, result: StepResult) -> None:
    values = engine.average({name: float(value) for name, value in result.metrics.items()})
    finite = all(np.isfinite(value) for value in values.values())
    stats.log(StatsRow.model_validate({"step": 0, **values, "finite": float(finite)}))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()) + "\n")
