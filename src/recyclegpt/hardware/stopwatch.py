"""Seconds of work on a device, and its memory bandwidth, the yardstick of decoding."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch

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
