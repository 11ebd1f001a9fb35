"""Where a rank is: its number, and the device that it computes on."""

from __future__ import annotations

import os

import torch

from rdm.compute.capabilities import has_fast_bfloat16
from rdm.errors import TrainingError
from rdm.training.config import TrainConfig


def distributed_place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, as the launcher's environment says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def training_device(config: TrainConfig) -> torch.device:
    """Return the device of this rank.

    Raises:
        TrainingError: `device=cuda` where there is none, or `precision=fp16` on a CPU that does not compute in it.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise TrainingError(
            "device is cuda, but PyTorch finds no GPU here",
            fix="check the driver with `rdm doctor`, or --set device=cpu",
        )
    if available and config.device != "cpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if config.precision == "fp16":
        raise TrainingError(
            "precision is fp16, which DeepSpeed refuses on a CPU: it does not compute in 16-bit floats",
            fix="--set precision=bf16, which has the range of fp32 and needs no loss scale",
        )
    return torch.device("cpu")


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Return what a run's networks multiply in under autocast; None: no autocast, fp32."""
    if config.precision == "fp16":
        return torch.float16
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_fast_bfloat16(device.type))
    return torch.bfloat16 if bf16 else None
