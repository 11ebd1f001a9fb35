"""Where bfloat16 pays: on accelerators, and on processors with bfloat16 products (AMX, AVX-512 BF16)."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Return the autocast context of a precision; `auto` is bf16 where the device multiplies it natively."""
    enabled = precision == "bf16" or (precision == "auto" and has_fast_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether matrix products in bfloat16 are faster than in float32."""
    if device.type == "cuda":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
