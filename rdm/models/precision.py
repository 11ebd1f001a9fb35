"""The precision in which a network computes."""

from __future__ import annotations

from typing import Literal

import torch

from rdm.compute.machine import has_fast_bfloat16

Precision = Literal["auto", "bf16", "fp32"]


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Return the autocast context of a precision; `auto` is bf16 if the device multiplies it."""
    # Emulated bf16 would be slower than float32.
    enabled = precision == "bf16" or (precision == "auto" and has_fast_bfloat16(device.type))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
