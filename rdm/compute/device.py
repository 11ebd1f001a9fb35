"""The device that networks compute on: one rule for training, sampling, evaluation, embedding."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from rdm.compute.masks import describe_masks
from rdm.errors import DeviceError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["auto", "cpu", "cuda"]


def compute_device(
    requested: DeviceName, index: int = 0, fix: str = "--device cpu"
) -> torch.device:
    """Return the device of a setting: `auto` is a GPU where PyTorch finds one, else the CPU.

    Args:
        requested: the setting.
        index: the number of the GPU among the visible ones.
        fix: the advice where there is none.

    Raises:
        DeviceError: `cuda` where PyTorch finds no GPU.
    """
    import torch

    available = requested != "cpu" and torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise DeviceError(
            "device is cuda, but PyTorch finds no GPU here",
            where=describe_masks(os.environ),
            fix=f"check the driver with `rdm doctor`, or {fix}",
        )
    return torch.device("cuda", index) if available else torch.device("cpu")


def worker_device(requested: DeviceName) -> torch.device:
    """Return the device of one of a machine's worker processes: they share its GPUs evenly.

    Raises:
        DeviceError: `cuda` where PyTorch finds no GPU.
    """
    import torch

    device = compute_device(requested)
    if device.type != "cuda":
        return device
    return torch.device("cuda", os.getpid() % torch.cuda.device_count())


def describe_device(device: torch.device) -> str:
    """Return a device in words: `cpu`, or `cuda:0 (NVIDIA H200)`."""
    import torch

    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"
