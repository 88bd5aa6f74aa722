"""Memory bandwidth of the machine, the yardstick of decoding."""

from __future__ import annotations

import statistics

import torch

from recyclegpt.hardware.stopwatch import Stopwatch

SIZE_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Many times the size of a processor's caches; on a GPU, enough to take measurably long."""


class CopyTimer:
    """Times large copies, spread over a measurement: on a shared machine the bandwidth changes by the minute."""

    def __init__(self, device: torch.device, size_bytes: int | None = None) -> None:
        """Allocate and warm up."""
        self.size_bytes = SIZE_BYTES.get(device.type, 2**28) if size_bytes is None else size_bytes
        self.stopwatch = Stopwatch(device)
        self.source = torch.ones(self.size_bytes // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.seconds: list[float] = []
        self.measure(2)
        self.seconds = []

    def measure(self, copies: int) -> None:
        """Time more copies."""
        self.seconds += self.stopwatch.seconds(*[lambda: self.target.copy_(self.source)] * copies)

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second of the median copy, reads and writes both counted."""
        return 2 * self.size_bytes / statistics.median(self.seconds)
