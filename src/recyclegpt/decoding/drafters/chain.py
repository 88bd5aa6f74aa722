"""Drafting one token after another, each from the state that the one before led to.

B batch, T positions, C model width, m drafted tokens, V vocabulary, D draft vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recyclegpt.decoding.draft_length import DraftLength
from recyclegpt.decoding.sampling import Sampler, largest_probability
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.decoding.text_buffer import TextBuffer
from recyclegpt.models import KVCache, RecycleGPT

EARLY_EXIT_DEVICES = ("cpu",)
"""Devices that lose nothing when the host asks for a value: there, drafting ends once no row is confident."""


class BackbonePass(NamedTuple):
    """A backbone pass that has just been made, from which drafting begins."""

    hidden_BTC: Tensor
    """Its states; of a kind that taps the backbone, what that layer read."""
    positions_BT: Tensor
    """Where they stand."""
    newest_B: Tensor
    """The last of the T that belongs to the text; those after it were rejected, or are padding."""
    num_slots_read: int
    """Bounds the slots that a KV cache reads."""
    best_BT: Tensor | None = None
    """The token that the backbone thinks most likely after each; None in a prefill."""


class ChainDrafter:
    """What all of these share; a subclass says which state follows a token."""

    table_BV: Tensor | None = None

    def __init__(self, model: RecycleGPT, strategy: Strategy, sampler: Sampler, text: TextBuffer) -> None:
        """Allocate."""
        self.model, self.sampler, self.text = model, sampler, text
        self.m, self.fixed_threshold = strategy.num_recycled, strategy.confidence_threshold
        self.exits_early = model.device.type in EARLY_EXIT_DEVICES
        batch = len(text.tokens_BS)
        self.cache: KVCache | None = None
        self.length: DraftLength | None = None
        self.num_drafted_B = torch.zeros(batch, dtype=torch.long, device=model.device)
        self.distributions_BmV: Tensor | None = None
        if strategy.lossless and sampler.rejects:
            shape, wide = (batch, self.m, model.config.vocab_size), torch.promote_types(model.dtype, torch.float32)
            self.distributions_BmV = torch.zeros(shape, dtype=wide, device=model.device)

    @property
    def threshold(self) -> float:
        """Drafting continues while the product of the drafter's largest probabilities is above it; 0: always."""
        return self.fixed_threshold if self.length is None else self.length.cutoff

    def propose(self, state_BC: Tensor, num_slots_read: int) -> None:
        """Draft m tokens, the first of them from this state."""
        threshold, draft_ids = self.threshold, self.model.draft_ids
        chance_B = torch.ones(len(state_BC), device=state_BC.device)  # that all so far are right
        self.num_drafted_B.fill_(0 if threshold > 0 else self.m)
        for number in range(1, self.m + 1):
            logits_BD = self.model.draft_logits(state_BC)
            position_B = self.text.position_B + number
            seen_BD: Tensor | None = None
            if self.sampler.config.penalises:
                seen_BD = self.text.seen((position_B - 1)[:, None])[:, 0]
                if draft_ids is not None:
                    seen_BD = seen_BD[:, draft_ids]
            token_B, distribution_BV = self.sampler.choose(logits_BD, number, position_B, seen_BD, draft_ids)
            self.text.write(position_B, token_B)
            if self.distributions_BmV is not None and distribution_BV is not None:
                self.distributions_BmV[:, number - 1] = distribution_BV
            if threshold > 0:
                chance_B = chance_B * largest_probability(logits_BD, self.sampler.config, seen_BD)
                sure_B = chance_B > threshold
                self.num_drafted_B.add_(sure_B)
                if self.exits_early and not bool(sure_B.any()):
                    return
            if number < self.m:
                state_BC = self.following(state_BC, token_B, number, num_slots_read)

    def following(self, state_BC: Tensor, token_B: Tensor, number: int, num_slots_read: int) -> Tensor:
        """The state `(B, C)` after the `number`-th drafted token, `token_B`, which was drafted from `state_BC`."""
        raise NotImplementedError
