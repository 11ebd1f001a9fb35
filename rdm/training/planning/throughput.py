"""Training speed: expected as a share of a device's peak, or measured here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rdm.errors import UsageError
from rdm.training.config import TrainConfig
from rdm.training.engine.network_settings import networks_of, prepare_networks
from rdm.training.engine.training_device import autocast_dtype, device_type
from rdm.training.planning.cost import NetworkCost, training_case

PEAKS = {
    "a100": 312e12,
    "h100": 989.4e12,
    "h100-pcie": 756e12,
    "h200": 989.4e12,
    "b200": 2250e12,
    "l40s": 362e12,
    "l4": 121e12,
}
"""Multiplications and additions per second in bf16 without sparsity, as NVIDIA's data sheets
say."""

DEFAULT_DEVICE, DEFAULT_UTILIZATION = "h100", 0.4
_WARM_UP, _MEASURED = 1, 3


@dataclass(frozen=True)
class Throughput:
    """How fast samples are trained on.

    Attributes:
        samples_per_second: of one device.
        flops_per_second: of the network, forward and backward.
        utilization: share of the device's peak; None where the peak is not known.
        basis: where these come from, in words.
    """

    samples_per_second: float
    flops_per_second: float
    utilization: float | None
    basis: str


def expected_throughput(cost: NetworkCost, device: str, utilization: float) -> Throughput:
    """Return what one device gives if a share of its peak is used: arithmetic, no measurement.

    Raises:
        UsageError: the device's peak is not known, or the share is none.
    """
    if device not in PEAKS:
        raise UsageError(
            f"the peak of {device!r} is not known", fix=f"--device, one of {', '.join(PEAKS)}"
        )
    if not 0 < utilization <= 1:
        raise UsageError(
            f"{utilization} is no share of a peak", fix="--utilization between 0 and 1, such as 0.4"
        )
    rate = PEAKS[device] * utilization
    peak = f"{PEAKS[device] / 1e12:.0f} TFLOP/s of one {device} in bf16"
    basis = f"assumed, not measured: {utilization:.0%} of the {peak}"
    return Throughput(rate / cost.step_flops, rate, utilization, basis)


def measured_throughput(config: TrainConfig, cost: NetworkCost, batch_size: int) -> Throughput:
    """Return what a few forward and backward passes here give, on zeros, in the recipe's precision.

    The optimizer's step, the averages and reading are not part of it.

    Raises:
        TrainingError: the recipe asks for a device that is not here.
    """
    device = torch.device(device_type(config))
    dtype = autocast_dtype(config, device)
    with torch.device(device):
        case = training_case(config.objective, batch_size)
    assert case is not None  # there is a cost
    network, run = case
    prepare_networks(networks_of(network), config)

    def step() -> None:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = run().float().square().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    seconds = _seconds(step, device)
    rate, peak = batch_size / seconds, peak_of(device_name(device))
    flops = rate * cost.step_flops
    precision = "fp32" if dtype is None else str(dtype).removeprefix("torch.")
    basis = (
        f"measured: {_MEASURED} forward and backward passes of {batch_size} samples on "
        f"{device_name(device)}, "
        f"{precision}, {seconds:.3g} s each; without the optimizer's step"
    )
    return Throughput(rate, flops, flops / peak if peak else None, basis)


def device_name(device: torch.device) -> str:
    """Return what a device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU, {torch.get_num_threads()} threads"


def peak_of(name: str) -> float | None:
    """Return the peak in bf16, of `PEAKS`, of a device with that name; None if it is not there."""
    # No CPU is: its peak depends on its clock under load, which no data sheet says.
    words = name.lower().replace("-", " ").split()
    kinds = (
        ["h100-pcie"]
        if {"h100", "pcie"} <= set(words)
        else [word for word in words if word in PEAKS]
    )
    return PEAKS[kinds[0]] if kinds else None


def flop_rates(
    cost: NetworkCost | None, samples_per_second: float, peak: float | None
) -> dict[str, float]:
    """Return FLOPs per second and, with a known peak of all devices, their utilization."""
    if cost is None:
        return {}
    rate = cost.step_flops * samples_per_second
    return {"model_flops_per_second": rate} | (
        {"model_flop_utilization": rate / peak} if peak else {}
    )


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    for _ in range(_WARM_UP):
        step()
    # A GPU works through a queue: without waiting, only the time to fill it would be measured.
    _wait(device)
    started = time.perf_counter()
    for _ in range(_MEASURED):
        step()
    _wait(device)
    return (time.perf_counter() - started) / _MEASURED


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
