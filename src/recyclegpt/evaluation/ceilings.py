"""What speed arithmetic allows: pass costs measured by themselves, and the ceilings that follow from them.

With rho_n the cost of an n-token backbone pass and c_n that of an n-row module call, both over a 1-token backbone pass
and both with the classifier, one cycle of m recycled tokens yields at most m + 1 tokens for
`rho_{m+1} + c_{m+1} + (m - 1) * c_1`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from recyclegpt.models import RecycleGPT, StaticCache


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock read afterwards means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class PassCosts:
    """Costs of the passes of one cycle, relative to a backbone pass over one token."""

    num_recycled: int
    backbone_pass_s: float
    """Seconds of a backbone pass over one token, with the classifier."""
    rho: float
    """A pass over m + 1 tokens."""
    c: float
    """A module call over m + 1 rows."""
    c_one: float
    """A module call over one row."""

    def ceiling(self, acceptance: float = 1.0) -> float:
        """Largest speedup over autoregressive decoding; alternating decoding has an acceptance of 1."""
        cycle = self.rho + self.c + (self.num_recycled - 1) * self.c_one
        return (1 + self.num_recycled * acceptance) / cycle


def byte_ceiling(model: RecycleGPT, num_recycled: int, acceptance: float = 1.0) -> float:
    """Largest speedup if a pass cost what its weights take to read.

    Then rho is 1, and c the bytes of module and head over those of backbone and head. It binds only where decoding is
    bound by memory; where fixed overheads dominate, a measurement may pass it.
    """
    head = model.lm_head.weight.numel()
    embedding = model.backbone.embed_tokens.weight.numel()
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters()) - embedding + head
    c = (model.num_parameters_recycle() + head) / backbone
    return (1 + num_recycled * acceptance) / (1 + num_recycled * c)


@torch.no_grad()
def measure_pass_costs(
    model: RecycleGPT,
    num_recycled: int,
    position: int,
    repetitions: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> PassCosts:
    """Time each kind of pass alone, one after another in every repetition, and take medians of the ratios.

    Args:
        model: on its device, in the dtype to measure, with a recyclable module.
        num_recycled: tokens m recycled per cycle.
        position: where in the context the passes stand; attention reads that many slots.
        repetitions: rounds; the first two are warm-up and not counted.
        clock: seconds, for tests.
    """
    device = model.lm_head.weight.device
    num_slots = position + num_recycled + 1
    cache = StaticCache(model.config, model.config.num_layers, 1, num_slots, like=model.lm_head.weight)
    module_cache = StaticCache(model.config, model.recycle_config.num_layers, 1, num_slots, like=model.lm_head.weight)
    state = torch.zeros(1, num_recycled + 1, model.config.hidden_size, dtype=model.lm_head.weight.dtype, device=device)

    def backbone_pass(num_tokens: int) -> None:
        positions = torch.arange(position, position + num_tokens, device=device)[None]
        model.classify(model.read(torch.zeros_like(positions), positions, cache=cache)).argmax(-1)

    def module_pass(num_rows: int) -> None:
        positions = torch.arange(position, position + num_rows, device=device)[None]
        rows = model.recycle(torch.zeros_like(positions), state[:, :num_rows], positions, cache=module_cache)
        model.classify(rows[:, -1]).argmax(-1)

    def seconds(run: Callable[[int], None], size: int) -> float:
        synchronise(device)
        begin = clock()
        for _ in range(3):
            run(size)
        synchronise(device)
        return (clock() - begin) / 3

    rounds = []
    for _ in range(repetitions + 2):
        one = seconds(backbone_pass, 1)
        block = seconds(backbone_pass, num_recycled + 1)
        rounds.append((one, block / one, seconds(module_pass, num_recycled + 1) / one, seconds(module_pass, 1) / one))
    medians = [statistics.median(column) for column in zip(*rounds[2:], strict=True)]
    return PassCosts(num_recycled, *medians)
