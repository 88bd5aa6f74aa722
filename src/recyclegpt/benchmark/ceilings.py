"""The speed that arithmetic allows: pass costs, measured on their own, and the ceilings that follow from them.

With rho_n the cost of an n-token backbone pass (the verify cost) and c_n that of an n-row module call (the draft cost),
both over a 1-token backbone pass and both with the LM head, one step with m drafted tokens yields at most m + 1 tokens
for `rho_{m+1} + c_{m+1} + (m - 1) * c_1`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from recyclegpt.decoding import Decoder, Sampler, SamplingConfig, Verified
from recyclegpt.decoding.cuda_graph import GraphedStep
from recyclegpt.decoding.drafters import BackbonePass, make_module_drafter
from recyclegpt.decoding.sampling import most_likely
from recyclegpt.decoding.text_buffer import TextBuffer
from recyclegpt.hardware.measure import Clock, Stopwatch
from recyclegpt.models import KVCache, RecycleGPT


@dataclass(frozen=True)
class PassCosts:
    """Costs of the passes of one step, relative to a backbone pass over one token."""

    num_recycled: int
    backbone_pass_s: float
    """Seconds of a backbone pass over one token, with the LM head."""
    verify_cost: float
    """rho_{m+1}: a backbone pass over m + 1 tokens."""
    draft_cost: float
    """c_{m+1}: a module call over m + 1 rows."""
    single_draft_cost: float
    """c_1: a module call over one row."""

    def ceiling(self, acceptance: float = 1.0) -> float:
        """Largest speedup over autoregressive decoding at this acceptance rate; alternating decoding's is 1."""
        step = self.verify_cost + self.draft_cost + (self.num_recycled - 1) * self.single_draft_cost
        return (1 + self.num_recycled * acceptance) / step


def byte_ceiling(model: RecycleGPT, num_recycled: int, acceptance: float = 1.0) -> float:
    """Largest speedup if a pass cost what its weights take to read.

    Then the verify cost is 1, and what drafting costs is its `draft_bytes` over those of backbone and LM head. It binds
    only where decoding is bound by memory; where fixed overheads dominate, a measurement may exceed it.
    """
    return (1 + num_recycled * acceptance) / (1 + draft_bytes(model, num_recycled) / backbone_bytes(model))


def bytes_ratio(model: RecycleGPT) -> float:
    """Bytes that a module call reads over those that a backbone pass reads, the LM head in both."""
    return draft_bytes(model, 1) / backbone_bytes(model)


def backbone_bytes(model: RecycleGPT) -> int:
    """Weights that a backbone pass reads: layers, norm and LM head; of the embedding it needs one row per token."""
    return _bytes(model.backbone) - _bytes(model.backbone.embed_tokens) + _bytes(model.lm_head)


def draft_bytes(model: RecycleGPT, num: int) -> int:
    """Weights that drafting `num` tokens reads: the module's in each call, its LM head's for each token.

    0 without a module.
    """
    if model.recyclable is None:
        return 0
    ids = 0 if model.draft_ids is None else model.draft_ids.nbytes
    head = _bytes(model.lm_head if model.draft_lm_head is None else model.draft_lm_head)
    tap = model.recyclable.tap
    upper = 0 if tap is None else sum(_bytes(layer) for layer in list(model.backbone.layers)[tap:])
    return model.recyclable.num_calls(num) * (_bytes(model.recyclable) - ids + upper) + num * head


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def measure_pass_costs(
    decoder: Decoder, num_recycled: int, position: int, repetitions: int = 15, clock: Clock = time.perf_counter
) -> PassCosts:
    """Costs of a step's passes at batch 1, measured at once."""
    timer = PassTimer(decoder, num_recycled, position, clock=clock)
    timer.measure(repetitions)
    return timer.costs()


SWEEPS_PER_ROUND = 3
"""Times that each pass runs in a round, in turn with the others, as in a step."""


class PassTimer:
    """Times each kind of pass, one after another in every round; medians are taken of the ratios of a round.

    Rounds may be spread over the time in which decoders are measured, so that cost and speed see the same machine.
    """

    def __init__(
        self, decoder: Decoder, num_recycled: int, position: int, batch: int = 1, clock: Clock = time.perf_counter
    ) -> None:
        """Warm up the passes of a model with a module, compiled or as CUDA graphs as the decoder runs them."""
        self.num_recycled, self.stopwatch = num_recycled, Stopwatch(decoder.model.device, clock)
        passes, block = Passes(decoder, position, num_recycled + 1, batch), num_recycled + 1
        self.passes = [passes.backbone(1), passes.backbone(block)]
        self.passes += [passes.drafts(block, num) for num in (1, max(2, num_recycled))]
        self.rounds: list[tuple[float, float, float, float]] = []
        self.measure(2)
        self.rounds = []

    @torch.no_grad()
    def measure(self, rounds: int) -> None:
        for _ in range(rounds):
            seconds = self.stopwatch.seconds(*self.passes * SWEEPS_PER_ROUND)
            one, block, first, all_drafts = (
                sum(seconds[number :: len(self.passes)]) / SWEEPS_PER_ROUND for number in range(len(self.passes))
            )
            self.rounds.append(
                (one, block / one, first / one, (all_drafts - first) / one / max(1, self.num_recycled - 1))
            )

    def costs(self) -> PassCosts:
        """Medians of all rounds so far."""
        return PassCosts(self.num_recycled, *map(statistics.median, zip(*self.rounds, strict=True)))


class Passes:
    """Single passes of a decoder, the LM head in each, at a position in the context: attention reads that far."""

    def __init__(self, decoder: Decoder, position: int, widest: int, batch: int = 1) -> None:
        model = decoder.model
        self.decoder, self.num_slots = decoder, decoder.bucketed(position + widest)
        shape = (batch, self.num_slots, model.dtype, model.device)
        self.cache = KVCache(model.config, model.config.num_layers, *shape)
        self.positions_BT = torch.arange(position, position + widest, device=model.device).expand(batch, -1)

    def backbone(self, width: int) -> Callable[[], object]:
        model, positions_BT = self.decoder.model, self.positions_BT[:, :width].contiguous()
        tokens_BT = torch.zeros_like(positions_BT)

        def run() -> object:
            read = {"cache": self.cache, "num_slots_read": self.num_slots}
            return most_likely(model.logits(self.decoder.backbone_states(tokens_BT, positions_BT, **read)))

        return as_graph(run, model.device)

    def drafts(self, width: int, num: int) -> Callable[[], object]:
        """What the module does in a step: it reads `width` true pairs and drafts `num` tokens greedily."""
        model, positions_BT = self.decoder.model, self.positions_BT[:, :width].contiguous()
        batch, last = len(positions_BT), int(positions_BT[0, -1])
        text = TextBuffer(batch, self.num_slots + num + 2, model.config.vocab_size, model.device)
        text.position_B.fill_(last + 1)
        sampler = Sampler.seeded(SamplingConfig(), batch, 0, model.device)
        given = Verified(width - 1 or 1), sampler, text, self.cache, self.decoder.recycle
        drafter = make_module_drafter(model, *given)
        drafter.m = min(num, model.recycle_config.num_drafted or num)
        states_BTC = torch.zeros(batch, width, model.config.hidden_size, dtype=model.dtype, device=model.device)
        newest_B = torch.full_like(text.position_B, width - 1)
        made = BackbonePass(states_BTC, positions_BT, newest_B, self.num_slots)
        return as_graph(lambda: drafter.draft(made), model.device)


@torch.no_grad()
def as_graph(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """On CUDA a graph of it, as decoding replays its steps; elsewhere itself."""
    if device.type != "cuda":
        return run
    graphed = GraphedStep(lambda _: run())
    for _ in range(2):
        graphed(0)
    return lambda: graphed(0)
