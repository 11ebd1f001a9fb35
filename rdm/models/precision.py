"""The precision in which a network computes."""

from __future__ import annotations

from typing import Literal

import torch

from rdm.compute.machine import has_fast_bfloat16
from rdm.errors import UsageError

Precision = Literal["auto", "bf16", "fp32"]
ActingPrecision = Literal["bf16", "fp32"]
_PRECISIONS: dict[torch.dtype, ActingPrecision] = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Return the autocast context of a precision; `auto` is bf16 if the device multiplies it."""
    enabled = acting_precision(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def acting_precision(device: torch.device, precision: Precision = "auto") -> ActingPrecision:
    """Return the precision that a device computes in."""
    if precision != "auto":
        return precision
    # Emulated bf16 would be slower than float32.
    return "bf16" if has_fast_bfloat16(device.type) else "fp32"


def precision_of(dtype: torch.dtype | None) -> Precision:
    """Return the precision of a data type; None: `auto`.

    Raises:
        UsageError: networks compute in no such type.
    """
    if dtype is None:
        return "auto"
    if dtype not in _PRECISIONS:
        raise UsageError(
            f"networks do not compute in {dtype}",
            where="dtype",
            fix="torch.bfloat16, torch.float32, or none: the faster one",
        )
    return _PRECISIONS[dtype]
