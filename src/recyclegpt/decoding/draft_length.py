"""How many tokens to draft: as many as are likely to pay for their drafting and their verification."""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from recyclegpt.decoding.sampling import most_likely
from recyclegpt.models import KVCache, RecycleGPT

ROUNDS = 5
_COSTS: WeakKeyDictionary[RecycleGPT, dict[int, float]] = WeakKeyDictionary()


def cost_of_a_draft(model: RecycleGPT, num_recycled: int) -> float:
    """What one more drafted token costs, in backbone passes over one token: a row and a module call.

    It is measured once for a model, not for every text.
    """
    costs = _COSTS.setdefault(model, {})
    if num_recycled not in costs:
        costs[num_recycled] = _measured(model, num_recycled)
    return costs[num_recycled]


@torch.no_grad()
def _measured(model: RecycleGPT, num_recycled: int) -> float:
    config, shape = model.config, (1, num_recycled + 1, model.dtype, model.device)
    cache = KVCache(config, config.num_layers, *shape)
    assert model.recyclable is not None
    module_cache = KVCache(config, model.recyclable.depth, *shape)
    positions_BT = torch.arange(num_recycled + 1, device=model.device)[None]
    one_BT, state_BTC = positions_BT[:, :1], torch.zeros(1, 1, config.hidden_size, dtype=model.dtype)

    one = block = draft = float("inf")

    def seconds(positions_BT: Tensor) -> float:
        begin = time.perf_counter()
        most_likely(model.logits(model.backbone_states(torch.zeros_like(positions_BT), positions_BT, cache=cache)))
        return time.perf_counter() - begin

    for _ in range(ROUNDS):
        one, block = min(one, seconds(one_BT)), min(block, seconds(positions_BT))
        begin = time.perf_counter()
        states = state_BTC  # of a one-call kind they are all there
        if not model.recyclable.one_call:
            states = model.recycle(torch.zeros_like(one_BT), state_BTC, one_BT, cache=module_cache)
        most_likely(model.draft_logits(states))
        draft = min(draft, time.perf_counter() - begin)
    return max(0.0, block - one) / one / num_recycled + draft / one


class DraftLength:
    """Drafting continues while all tokens drafted so far are right with more than this probability (`cutoff`).

    A token that costs c backbone passes and adds P expected tokens raises the speed where P / c is above the tokens
    that a pass brings anyway. P is the product of the drafter's largest probabilities.
    """

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.tokens = self.passes = 1.0

    @property
    def cutoff(self) -> float:
        """Least probability that pays."""
        return min(0.95, self.cost * self.tokens / self.passes)

    def update(self, num_accepted: int, num_verified: int, num_rows: int) -> None:
        """Count a step of this many rows."""
        self.tokens += num_rows + num_accepted
        self.passes += num_rows + self.cost * num_verified
