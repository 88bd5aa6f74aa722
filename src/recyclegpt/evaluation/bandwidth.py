"""What the machine's memory gives, to compare decoding with."""

from __future__ import annotations

import statistics
import time

import torch

from recyclegpt.evaluation.ceilings import synchronise


def copy_bandwidth(device: torch.device, size_bytes: int = 256 * 2**20, repetitions: int = 9) -> float:
    """Bytes a second that a large copy moves, read and written both counted; median after a warm-up."""
    source = torch.ones(size_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repetitions + 2):
        synchronise(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    return 2 * size_bytes / statistics.median(seconds[2:])
