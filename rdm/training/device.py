"""Where a rank is: its number, and the device that it computes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from rdm.compute.capabilities import has_fast_bfloat16
from rdm.compute.device import compute_device
from rdm.errors import TrainingError
from rdm.storage.files import atomic_path
from rdm.training.cluster import Machine
from rdm.training.config import TrainConfig

DEVICES = ".devices"


def distributed_place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, as the launcher's environment says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def training_device(config: TrainConfig) -> torch.device:
    """Return the device of this rank.

    Raises:
        DeviceError: `device=cuda` where there is none.
        TrainingError: `precision=fp16` on a CPU, which does not compute in it.
    """
    device = compute_device(config.device, int(os.environ.get("LOCAL_RANK", "0")), "--set device=cpu")
    if device.type == "cuda":
        return device
    if config.precision == "fp16":
        raise TrainingError(
            "precision is fp16, which DeepSpeed refuses on a CPU: it does not compute in 16-bit floats",
            fix="--set precision=bf16, which has the range of fp32 and needs no loss scale",
        )
    return device


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Return what a run's networks multiply in under autocast; None: no autocast, fp32."""
    if config.precision == "fp16":
        return torch.float16
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_fast_bfloat16(device.type))
    return torch.bfloat16 if bf16 else None


def tell_device(out: Path, node_rank: int, device: str) -> None:
    """Write down, below a run's folder, what a machine of its job computes on."""
    with atomic_path(out / DEVICES / str(node_rank)) as temporary:
        temporary.write_text(device, encoding="utf-8")


def require_one_device(out: Path, machines: Sequence[Machine]) -> None:
    """Raise TrainingError where the machines told different devices: their ranks would wait for each other in vain."""
    told = {
        machine.host: path.read_text(encoding="utf-8")
        for node_rank, machine in enumerate(machines)
        if (path := out / DEVICES / str(node_rank)).exists()
    }
    if len(set(told.values())) > 1:
        raise TrainingError(
            f"the machines do not train on the same device: {', '.join(f'{host} on {told[host]}' for host in told)}",
            fix="--set device=cpu, or leave the machines without a GPU out of the hostfile",
        )
