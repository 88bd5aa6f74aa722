"""What the machine's matrix units give, to compare training with."""

from __future__ import annotations

import statistics
import time

import torch

from recyclegpt.evaluation.ceilings import synchronise


def matmul_flops_per_s(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int = 8192, products: int = 10, rounds: int = 10
) -> float:
    """Operations per second of square matrix products; a multiply-add is two. The median of `rounds`.

    Several products lie between two looks at the clock, so that launching them weighs nothing. Random values, because
    a product of zeros draws less power and runs at a higher clock.
    """
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(rounds + 2):
        synchronise(device)
        begin = time.perf_counter()
        for _ in range(products):
            left @ right
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    return products * 2 * size**3 / statistics.median(seconds[2:])
