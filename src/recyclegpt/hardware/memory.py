"""Peak and physical memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
from pathlib import Path

import torch


class PeakMemory:
    """`with PeakMemory(device) as peak: ...; peak.bytes`: of tensors on a CUDA device, otherwise of the whole process.

    NaN where unknown: for a process only Linux tells.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = math.nan

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.init()  # before the first tensor there is no peak to reset, which is an error
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):  # not Linux, or not allowed
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = peak_memory_bytes(self.device)


def peak_memory_bytes(device: torch.device) -> float:
    """Peak memory since the last reset; NaN where unknown."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+)", status.read_text(encoding="utf-8"))):
        return float(peak[1]) * 1024
    return math.nan


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory of a GPU, or of this machine; None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def keep_freed_memory() -> None:
    """Let glibc reuse what a step frees: a training step on a CPU took a tenth longer where the kernel took it back.

    Allocations up to 32 MiB, the most that glibc takes, come from its heap, which keeps up to 2 GiB of freed memory.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
