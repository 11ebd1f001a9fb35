"""Samples per second of `rdm-tiny` on two ranks of one core each, against one rank of two cores and
of one core."""

from __future__ import annotations

import json
import statistics
import sys
import time

from benchmarks.training_ranks import build_engine, micro_batches, run_ranks, tiny_config

STEPS = 15


def run() -> str:
    """Return the ratios in words."""
    rounds = [
        [run_ranks(__name__, ranks, threads)[0] for ranks, threads in ((2, 1), (1, 2), (1, 1))]
        for _ in range(2)
    ]
    two, both_cores, one_core = (statistics.median(column) for column in zip(*rounds, strict=True))
    return (
        f"{two:.0f} samples/s on two ranks: {two / both_cores:.2f}x one rank with both cores, "
        f"{two / one_core:.2f}x one rank with one"
    )


def measure() -> float:
    """Return samples per second over all ranks, from the median step."""
    config = tiny_config()
    engine = build_engine(config)
    seconds = []
    for number in range(STEPS):
        batch = micro_batches(config, engine, number)
        engine.barrier()
        started = time.perf_counter()
        engine.step(batch, 1e-4)
        seconds.append(time.perf_counter() - started)
    engine.close()
    return config.batch_size / statistics.median(seconds[3:])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()) + "\n")
