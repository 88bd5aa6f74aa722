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
from torch import nn

from recyclegpt.decoding import Decoder
from recyclegpt.decoding.graph import GraphedCycle
from recyclegpt.decoding.sampling import most_likely
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
    return (1 + num_recycled * acceptance) / (1 + num_recycled * bytes_ratio(model))


def bytes_ratio(model: RecycleGPT) -> float:
    """Bytes that a module call reads over those that a backbone pass reads, the classifier in both."""
    return module_bytes(model) / backbone_bytes(model)


def backbone_bytes(model: RecycleGPT) -> int:
    """Weights that a backbone pass reads: layers, norm and classifier; of the embedding it needs a row a token."""
    return _bytes(model.backbone) - _bytes(model.backbone.embed_tokens) + _bytes(model.lm_head)


def module_bytes(model: RecycleGPT) -> int:
    """Weights that a call of the recyclable module reads, the classifier's among them; 0 without a module."""
    return 0 if model.recyclable is None else _bytes(model.recyclable) + _bytes(model.lm_head)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


@torch.no_grad()
def measure_pass_costs(
    decoder: Decoder,
    num_recycled: int,
    position: int,
    repetitions: int = 15,
    batch: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> PassCosts:
    """Time each kind of pass alone, one after another in every repetition, and take medians of the ratios.

    Args:
        decoder: its model has a recyclable module; the passes run as its cycles run them, compiled or as CUDA graphs.
        num_recycled: tokens m recycled per cycle.
        position: where in the context the passes stand; attention reads that many slots.
        repetitions: rounds; the first two are warm-up and not counted.
        batch: rows of a pass.
        clock: seconds, for tests.
    """
    model, device = decoder.model, decoder.model.device
    num_slots, depth = position + num_recycled + 1, model.recycle_config.num_layers
    cache = StaticCache(model.config, model.config.num_layers, batch, num_slots, model.dtype, device)
    module_cache = StaticCache(model.config, depth, batch, num_slots, model.dtype, device)
    state = torch.zeros(batch, num_recycled + 1, model.config.hidden_size, dtype=model.dtype, device=device)

    def backbone_pass(num_tokens: int) -> Callable[[], object]:
        positions = torch.arange(position, position + num_tokens, device=device).expand(batch, -1)
        tokens = torch.zeros_like(positions)
        return lambda: most_likely(
            model.classify(decoder.read(tokens, positions, cache=cache, num_read=num_slots))
        )

    def module_pass(num_rows: int) -> Callable[[], object]:
        positions = torch.arange(position, position + num_rows, device=device).expand(batch, -1)
        tokens, states = torch.zeros_like(positions), state[:, :num_rows].contiguous()
        return lambda: most_likely(
            model.classify(decoder.recycle(tokens, states, positions, cache=module_cache, num_read=num_slots)[:, -1])
        )

    def seconds(run: Callable[[], object]) -> float:
        synchronise(device)
        begin = clock()
        for _ in range(3):
            run()
        synchronise(device)
        return (clock() - begin) / 3

    sizes = (1, num_recycled + 1)
    passes = [as_graph(made, device) for made in (*map(backbone_pass, sizes), *map(module_pass, sizes[::-1]))]
    rounds = []
    for _ in range(repetitions + 2):
        one, block, module_block, module_one = map(seconds, passes)
        rounds.append((one, block / one, module_block / one, module_one / one))
    medians = [statistics.median(column) for column in zip(*rounds[2:], strict=True)]
    return PassCosts(num_recycled, *medians)


def as_graph(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """On CUDA a graph of it, as decoding replays its cycles; elsewhere itself."""
    if device.type != "cuda":
        return run
    graphed = GraphedCycle(lambda _: run())
    for _ in range(2):
        graphed(0)
    return lambda: graphed(0)
