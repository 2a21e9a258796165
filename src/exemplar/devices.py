"""Where models compute: the device, and whether it multiplies in bfloat16."""

from __future__ import annotations

import torch

_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Names under which torch reports processor units that multiply in bfloat16 (x86, x86, ARM)."""


def default_device() -> torch.device:
    """Return the GPU where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether `device` has units for bfloat16; elsewhere it is emulated, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Missing in older versions of torch, where float32 is then the safe choice.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(unit) for unit in _CPU_BF16)
