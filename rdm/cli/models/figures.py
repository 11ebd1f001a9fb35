"""What a recipe costs, as figures with a word on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rdm.config import format_bytes
from rdm.errors import UsageError

if TYPE_CHECKING:
    from rdm.training.config import TrainConfig
    from rdm.training.planning.cost import NetworkCost
    from rdm.training.planning.throughput import Throughput


class Figure(NamedTuple):
    """A number, how people read it, and what it is."""

    name: str
    value: float
    shown: str
    meaning: str


def cost_figures(config: TrainConfig, cost: NetworkCost | None, num_ranks: int = 1) -> list[Figure]:
    """Return parameters, FLOPs and memory of one of N ranks; nothing for heads on ready features.

    Raises:
        UsageError: there are no ranks.
    """
    from rdm.training.planning.cost import memory_need, state_bytes

    if num_ranks < 1:
        raise UsageError(f"{num_ranks} ranks cannot train", where="--ranks", fix="give 1 or more")
    if cost is None:
        return []

    need = memory_need(config, cost, num_ranks)
    per_parameter = state_bytes(config.zero_stage, num_ranks)
    samples = need.activations // cost.activation_bytes

    # In words, what each size is made of.
    zero = f"ZeRO {config.zero_stage} over {num_ranks}"
    state = f"{per_parameter:g} bytes per parameter: fp32 weights, gradients, moments; {zero}"
    kept = (
        f"kept for the backward pass of {samples} samples, "
        f"{format_bytes(cost.activation_bytes)} each"
    )
    return [
        Figure(
            "parameters", cost.parameters, f"{cost.parameters:,}", "of the network, all that train"
        ),
        Figure(
            "forward_flops",
            cost.forward_flops,
            giga(cost.forward_flops),
            "of a sample; a multiply-add is two",
        ),
        Figure(
            "step_flops",
            cost.step_flops,
            giga(cost.step_flops),
            "of a sample, forward and backward",
        ),
        Figure("state_bytes", need.state, format_bytes(need.state), state),
        Figure(
            "average_bytes",
            need.averages,
            format_bytes(need.averages),
            f"{len(config.ema_decays)} EMA in fp32",
        ),
        Figure(
            "activation_bytes",
            need.activations,
            format_bytes(need.activations),
            f"{kept}; in fp32, bf16 is less",
        ),
        Figure(
            "memory_bytes", need.total, format_bytes(need.total), "of a rank: the three together"
        ),
    ]


def throughput_figures(
    config: TrainConfig, cost: NetworkCost, throughput: Throughput
) -> list[Figure]:
    """Return how fast one device trains, and how long `max_steps` take on it."""
    # Of one device: more of them divide the hours.
    rate, flops = throughput.samples_per_second, throughput.flops_per_second
    samples = config.max_steps * config.batch_size
    total, hours = samples * cost.step_flops, samples / rate / 3600

    return [
        Figure("samples_per_second", rate, f"{rate:.3g}", throughput.basis),
        Figure(
            "flops_per_second", flops, f"{flops / 1e9:,.0f} GFLOP/s", "of the network at that rate"
        ),
        Figure(
            "total_flops",
            total,
            f"{total:.3g}",
            f"{config.max_steps:,} steps of {config.batch_size} samples",
        ),
        Figure("hours", hours, f"{hours:.3g}", "that these take on one such device"),
    ]


def as_values(figures: Sequence[Figure]) -> dict[str, float]:
    """Return the numbers by name."""
    return {figure.name: figure.value for figure in figures}


def giga(flops: float) -> str:
    """Return a number of FLOPs in words."""
    return f"{flops / 1e9:.3g} GFLOP" if flops < 1e12 else f"{flops / 1e12:.3g} TFLOP"
