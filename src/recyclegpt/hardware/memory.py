"""Peak and physical memory."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import TracebackType

import torch


class PeakMemory:
    """`with PeakMemory(device) as peak: ...; peak.bytes`: of tensors on a CUDA device, otherwise of the whole process.

    On Linux the process's peak is reset at the start; on other systems it is that of its whole life. NaN where unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = math.nan

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.init()  # before the first tensor there is no peak to reset, which is an error
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            except OSError:  # not Linux, or not allowed
                return self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bytes = peak_memory_bytes(self.device)


def peak_memory_bytes(device: torch.device) -> float:
    """Peak memory since the last reset; NaN where unknown."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        if peaks:
            return float(peaks[0]) * 1024
    try:
        import resource
    except ImportError:  # not a Unix system
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory of a device; None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return physical_memory()


def physical_memory() -> int | None:
    """Bytes of memory of this machine; None where unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
