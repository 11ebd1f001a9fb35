"""The cores and memory that this process may use, and what its processors do fast."""

from __future__ import annotations

from functools import cache


def num_cores() -> int:
    """Return the cores that this process may use: a container or `taskset` may limit them."""
    from dask.system import CPU_COUNT

    return CPU_COUNT


def memory_bytes() -> int:
    """Return the memory that this process may use: a container or `ulimit` may limit it."""
    from distributed.system import MEMORY_LIMIT

    return MEMORY_LIMIT


def has_fast_bfloat16(device_type: str = "cpu") -> bool:
    """Return whether matrix products in bfloat16 are faster than in float32.

    They are on accelerators, and on processors with AMX or AVX-512 BF16.
    """
    import torch

    if device_type == "cuda":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@cache
def has_fast_int8() -> bool:
    """Return whether matrix products of 8-bit whole numbers are faster than float32, and exact.

    They are on processors with VNNI. Older ones add pairs of products in 16 bits, which overflow.
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name, False) for name in ("amx_int8", "avx512_vnni")):
        return False

    # Tried on the greatest products: a library may take another path than the processor could.
    extremes = torch.tensor([[127, 127], [-127, -127], [127, -127]], dtype=torch.int8).repeat(8, 32)
    return torch.equal(
        torch.ops.aten._int_mm(extremes, extremes.T), extremes.int() @ extremes.int().T
    )
