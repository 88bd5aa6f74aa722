"""What the machine's matrix units give, to compare training with."""

from __future__ import annotations

import statistics

import torch

from recyclegpt.hardware.stopwatch import Stopwatch


def matmul_flops_per_s(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int = 8192, rounds: int = 50
) -> float:
    """Operations per second of square matrix products, a multiply-add being two; the median of `rounds`.

    Random values, because a product of zeros draws less power and so runs at a higher clock.
    """
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    stopwatch = Stopwatch(device)
    seconds = stopwatch.seconds(*[lambda: left @ right] * (rounds + 2))
    return 2 * size**3 / statistics.median(seconds[2:])
