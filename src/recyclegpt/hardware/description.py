"""What a speed was measured on, as every result file states it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from recyclegpt.hardware import cpu
from recyclegpt.hardware.contention import is_contended
from recyclegpt.hardware.device import device_name


def name_of(device: torch.device) -> str:
    """The maker's name of the CPU or GPU."""
    return cpu.name() if device.type == "cpu" else device_name(device)


def measured_on(device: torch.device, others_cpu: float | None) -> dict[str, Any]:
    """The `hardware` of a benchmark; `others_cpu` is the share of the CPUs that other processes used meanwhile."""
    return {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "contended": is_contended(others_cpu) if device.type == "cpu" else None,
        "others_cpu": others_cpu,
    }


def warn_contended(hardware: Mapping[str, Any]) -> None:
    """Warn below a table whose speeds are unreliable."""
    if hardware["contended"]:
        print(f"contended: other processes were using {hardware['others_cpu']:.0%} of the CPUs; speeds are unreliable")
