"""What a speed was measured on, as every document that holds one says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from recyclegpt.hardware import cpu
from recyclegpt.hardware.contention import is_contended
from recyclegpt.hardware.device import device_name


def name_of(device: torch.device) -> str:
    """The processor or the GPU, by its maker's name."""
    return cpu.name() if device.type == "cpu" else device_name(device)


def measured_on(device: torch.device, others_cpu: float | None) -> dict[str, Any]:
    """The `hardware` of a benchmark; `others_cpu` is the share of the processors that other programs took meanwhile."""
    return {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "contended": is_contended(others_cpu) if device.type == "cpu" else None,
        "others_cpu": others_cpu,
    }


def warn_contended(hardware: Mapping[str, Any]) -> None:
    """Warn below a table whose speeds were disturbed."""
    if hardware["contended"]:
        print(
            f"contended: other programs took {hardware['others_cpu']:.0%} of the processors meanwhile, so these speeds "
            "are not to be trusted"
        )
