"""What each choice does to a training step's speed on this device: compilation, attention, layout,
checkpointing.

    python -m benchmarks.throughput_table [RECIPE [BATCH ...]]      (rdm-imagenet, 50)

Each row changes one choice of the row before it, and the faster one stays; the last rows try the
other batches. Model FLOP utilization counts what the network needs, not what checkpointing computes
again. A step is a forward and a backward pass; on accelerators the recipe's precision is bf16.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

from rdm.recipes import recipe_config
from rdm.training.config import TrainConfig
from rdm.training.planning.cost import network_cost
from rdm.training.planning.throughput import Throughput, measured_throughput

CHOICES = ("channels_last", "compile", "activation_checkpointing")
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}


def run(recipe: str = "rdm-imagenet", batches: tuple[int, ...] = (50,)) -> str:
    """Return the table in Markdown."""
    config, batch = recipe_config(recipe), batches[0]
    rows = ["| choice | batch | samples/s | model TFLOP/s | utilization |", "|---|---|---|---|---|"]
    best = _row(rows, "as the recipe is", config, batch)
    for choice in CHOICES:
        changed = config.with_overrides([f"{choice}=true"])
        found = _row(rows, choice, changed, batch)
        if found > best:
            best, config = found, changed
    for name, kernel in KERNELS.items():
        _row(rows, f"attention: {name} only", config, batch, sdpa_kernel(kernel))
    for other in batches[1:]:
        _row(rows, "the fastest choices", config, other)
    return "\n".join(rows)


def _row(
    rows: list[str],
    name: str,
    config: TrainConfig,
    batch: int,
    kernel: AbstractContextManager[object] | None = None,
) -> float:
    """Add a row; return its samples per second, 0 where it could not run."""
    cost = network_cost(config)
    assert cost is not None
    try:
        with kernel or nullcontext():
            found = measured_throughput(config, cost, batch)
    except RuntimeError as error:  # no memory, or no such kernel on this device
        rows.append(f"| {name} | {batch} | {str(error).splitlines()[0][:80]} | | |")
        return 0.0
    rows.append(_words(name, batch, found))
    sys.stderr.write(rows[-1] + "\n")
    return found.samples_per_second


def _words(name: str, batch: int, found: Throughput) -> str:
    share = "not known" if found.utilization is None else f"{found.utilization:.1%}"
    return (
        f"| {name} | {batch} | {found.samples_per_second:,.1f} | "
        f"{found.flops_per_second / 1e12:,.3f} | {share} |"
    )


if __name__ == "__main__":
    name, *sizes = sys.argv[1:] or ["rdm-imagenet"]
    print(run(name, tuple(map(int, sizes)) or (50,)))
