"""What a device is called, the peak speed its maker states, and the description that result files hold."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recyclegpt.hardware.contention import is_contended

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


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found.group(1) if found else platform.processor() or platform.machine() or "unknown"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def peak_flops(name: str) -> float:
    """Dense bf16 peak of a device by name, operations per second; NaN for unknown devices."""
    if re.search(OTHER_DEVICES, name):
        return math.nan
    return next((peak for key, peak in PEAK_FLOPS_BF16.items() if re.search(rf"\b{key}\b", name)), math.nan)


def measured_on(device: torch.device, others_cpu: float | None) -> dict[str, Any]:
    """The `hardware` of a benchmark; `others_cpu` is the share of the CPUs that other processes used meanwhile."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "contended": is_contended(others_cpu) if device.type == "cpu" else None,
        "others_cpu": others_cpu,
    }


def warn_contended(hardware: Mapping[str, Any]) -> None:
    """Warn below a table whose speeds are unreliable."""
    if hardware["contended"]:
        print(f"contended: other processes were using {hardware['others_cpu']:.0%} of the CPUs; speeds are unreliable")
