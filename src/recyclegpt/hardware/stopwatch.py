"""Seconds of work on a device: by events on CUDA, by the host's clock otherwise."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch

Clock = Callable[[], float]
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
