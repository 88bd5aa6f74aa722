"""What the machine's memory gives, to compare decoding with."""

from __future__ import annotations

import statistics
import time

import torch

from recyclegpt.evaluation.ceilings import synchronise


class CopyTimer:
    """Times large copies, a few now and a few later: on a shared machine the bandwidth changes by the minute."""

    def __init__(self, device: torch.device, size_bytes: int = 256 * 2**20) -> None:
        """Allocate and warm up."""
        self.device, self.size_bytes = device, size_bytes
        self.source = torch.ones(size_bytes // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.seconds: list[float] = []
        self.measure(2)
        self.seconds = []

    def measure(self, copies: int) -> None:
        """Time so many copies more."""
        for _ in range(copies):
            synchronise(self.device)
            begin = time.perf_counter()
            self.target.copy_(self.source)
            synchronise(self.device)
            self.seconds.append(time.perf_counter() - begin)

    @property
    def bytes_per_s(self) -> float:
        """What the median copy moves, read and written both counted."""
        return 2 * self.size_bytes / statistics.median(self.seconds)
