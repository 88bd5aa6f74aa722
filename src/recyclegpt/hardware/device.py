"""Names of devices and the peak speeds their makers state."""

from __future__ import annotations

import math
import re

import torch

PEAK_FLOPS_BF16 = {
    r"B200": 2.25e15,
    r"GH200": 989.4e12,
    r"H200 NVL": 835.5e12,
    r"H200": 989.4e12,
    r"H100 NVL": 835.5e12,
    r"H100 PCIe": 756e12,
    r"H100": 989.4e12,
    r"A100": 312e12,
    r"A40": 149.7e12,
    r"A30": 165e12,
    r"A10": 125e12,
    r"A6000": 154.8e12,
    r"L40S": 362.05e12,
    r"L40": 181.05e12,
    r"L4": 121e12,
    r"RTX 4090": 165.2e12,
    r"RTX 3090": 71e12,
}
"""Dense bf16 operations per second, fp32 accumulation, of the device whose name holds the key (makers' data sheets)."""

OTHER_DEVICES = r"\b(MIG|Laptop|Max-Q)\b"
"""Names that contain a key of the table but are another device."""


def device_name(device: torch.device) -> str:
    """Name of a CUDA device as its driver gives it; otherwise the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(name: str) -> float:
    """Dense bf16 peak of a device by name, operations per second; NaN for unknown devices."""
    if re.search(OTHER_DEVICES, name):
        return math.nan
    return next((peak for key, peak in PEAK_FLOPS_BF16.items() if re.search(rf"\b{key}\b", name)), math.nan)
