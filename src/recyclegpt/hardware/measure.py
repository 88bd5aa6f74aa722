"""Memory and time of work on a device, and its memory bandwidth, the yardstick of decoding."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
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


Clock = Callable[[], float]
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Many times the size of a processor's caches; on a GPU, enough to take measurably long."""
BUSY_CYCLES = 1_000_000
"""About half a millisecond of GPU clock: longer than the host needs to queue a round."""


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished, so that a clock read afterwards means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Times single calls. On CUDA the calls of a round are queued without a pause and read from events afterwards.

    So no figure includes launch overhead, and each call finds the caches as the previous one left them: a call that is
    repeated alone would find its weights in the L2 cache, which no decoding step does.
    """

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        """`clock`: seconds, for tests; not used on CUDA."""
        self.device, self.clock = device, clock

    def seconds(self, *calls: Callable[[], object]) -> list[float]:
        """Seconds of each of these calls, made one after another."""
        if self.device.type == "cuda":
            return self._by_events(calls)
        times = []
        for call in calls:
            begin = self.clock()
            call()
            times.append(self.clock() - begin)
        return times

    def _by_events(self, calls: tuple[Callable[[], object], ...]) -> list[float]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        synchronise(self.device)
        torch.cuda._sleep(BUSY_CYCLES)  # while the device spins, the host queues everything that is timed
        marks[0].record()
        for call, mark in zip(calls, marks[1:], strict=True):
            call()
            mark.record()
        synchronise(self.device)
        return [begin.elapsed_time(end) / 1000 for begin, end in itertools.pairwise(marks)]


class CopyTimer:
    """Times large copies, spread over a measurement: on a shared machine the bandwidth changes by the minute."""

    def __init__(self, device: torch.device, size_bytes: int | None = None) -> None:
        self.size_bytes = COPY_BYTES.get(device.type, 2**28) if size_bytes is None else size_bytes
        self.stopwatch = Stopwatch(device)
        self.source = torch.ones(self.size_bytes // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.seconds: list[float] = []
        self.measure(2)
        self.seconds = []

    def measure(self, copies: int) -> None:
        self.seconds += self.stopwatch.seconds(*[lambda: self.target.copy_(self.source)] * copies)

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second of the median copy, reads and writes both counted."""
        return 2 * self.size_bytes / statistics.median(self.seconds)
