"""What this machine's processors do fast."""

from __future__ import annotations


def has_fast_bfloat16(device_type: str = "cpu") -> bool:
    """Return whether matrix products in bfloat16 are faster than in float32: on accelerators, and on processors with
    AMX or AVX-512 BF16.
    """
    import torch

    if device_type == "cuda":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
