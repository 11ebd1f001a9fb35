"""Where a rank is: its number, and the device that it computes on."""

from __future__ import annotations

import os
import platform
from typing import Literal

import torch

from rdm.compute.device import compute_device
from rdm.compute.machine import has_fast_bfloat16
from rdm.compute.masks import describe_masks
from rdm.errors import TrainingError
from rdm.training.config import TrainConfig


def distributed_place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, as the launcher's environment says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def device_type(config: TrainConfig) -> Literal["cpu", "cuda"]:
    """Return the kind of device that this machine's ranks train on.

    Raises:
        DeviceError: `device=cuda` where there is none.
        TrainingError: `precision=fp16` on a CPU, which does not compute in it.
    """
    if compute_device(config.device, fix="--set device=cpu").type == "cuda":
        return "cuda"
    if config.precision == "fp16":
        raise TrainingError(
            "precision is fp16, which DeepSpeed refuses on a CPU: it does not compute in "
            "16-bit floats",
            fix="--set precision=bf16, which has the range of fp32 and needs no loss scale",
        )
    return "cpu"


def training_device(config: TrainConfig) -> torch.device:
    """Return the device of this rank: the one of its number among those that are visible.

    Raises:
        TrainingError: as `device_type`, or this machine has more ranks than visible devices.
    """
    if device_type(config) == "cpu":
        return torch.device("cpu")
    # DeepSpeed's launcher numbers the ranks of a machine from 0, and masks renumber its devices so.
    return torch.device(
        "cuda", require_device(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count())
    )


def require_device(local_rank: int, num_devices: int) -> int:
    """Return a rank's number on its machine; raise TrainingError if it has no device."""
    if local_rank >= num_devices:
        masks = describe_masks(os.environ)
        raise TrainingError(
            f"rank {local_rank} of {platform.node()} has no GPU: {num_devices} are visible"
            + (f" under {masks}" if masks else ""),
            fix=f"write slots={num_devices} in the hostfile, or change the mask",
        )
    return local_rank


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Return what a run's networks multiply in under autocast; None: no autocast, fp32."""
    if config.precision == "fp16":
        return torch.float16
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and has_fast_bfloat16(device.type)
    )
    return torch.bfloat16 if bf16 else None
