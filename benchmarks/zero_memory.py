"""Bytes of tensors that a rank of two holds after a step, per parameter, under each ZeRO stage, and
by arithmetic."""

from __future__ import annotations

import gc
import json
import sys
import warnings

import torch

from benchmarks.training_ranks import build_engine, micro_batches, run_ranks, tiny_config

RANKS = 2
# fp32: weights, gradients, the optimizer's own copy of the weights, two moments. Gradients are
# freed when a step ends, except in stage 3, which keeps them, and a bucket of an eighth of the
# parameters in which they are reduced.
EXPECTED = {
    0: 4 + 8,
    1: 4 + (4 + 8) / RANKS,
    2: 4 + (4 + 8) / RANKS,
    3: (4 + 4 + 4 + 8) / RANKS + 4 / 8,
}


def run() -> str:
    """Return measured and expected bytes per parameter in words."""
    found = {stage: max(run_ranks(__name__, RANKS, 1, str(stage))) for stage in EXPECTED}
    return "; ".join(
        f"stage {stage}: {value:.2f} (arithmetic {EXPECTED[stage]:g})"
        for stage, value in found.items()
    )


def measure(stage: int) -> float:
    """Return the bytes of all live tensors over the number of parameters."""
    wide = "objective.network.block_out_channels=[96, 192, 384]"
    config = tiny_config(f"zero_stage={stage}", "batch_size=4", wide)
    engine = build_engine(config)
    parameters = sum(place.shape.numel() for place in engine.layout.places)
    for number in range(2):
        engine.step(micro_batches(config, engine, number), 1e-4)
    gc.collect()
    storages = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in gc.get_objects():
            if isinstance(found, torch.Tensor):
                storage = found.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    engine.close()
    return sum(storages.values()) / parameters


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]))) + "\n")
