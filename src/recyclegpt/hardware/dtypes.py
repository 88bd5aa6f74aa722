"""Which number format a device computes in natively."""

from __future__ import annotations

import torch

from recyclegpt.errors import ConfigError

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""Number formats of weights and states by the names that settings use."""
DECODING_DTYPES = DTYPES | {"int8": torch.int8}
"""Those that decoding has: int8 stands for int8 weights with states in the device's fastest format."""


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic runs in hardware there: AVX512-BF16 or AMX on a CPU, Ampere or later on CUDA.

    Everywhere else bf16 is emulated, and slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Private in torch 2.11 to 2.15, but the only question to the processor that torch asks for us.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device has it natively, else fp32."""
    return torch.bfloat16 if has_native_bf16(device) else torch.float32


def named_dtype(name: str, device: torch.device, decoding: bool = False) -> torch.dtype:
    """The number format a setting names; `auto` is the fastest of the device.

    Raises:
        ConfigError: the name is unknown, or is one of `DECODING_DTYPES` alone and this is not about `decoding`.
    """
    names = DECODING_DTYPES if decoding else DTYPES
    if name == "auto":
        return fastest_dtype(device)
    if name not in names:
        raise ConfigError(f"dtype: {name!r} is unknown; choose from auto, {', '.join(names)}")
    return names[name]
