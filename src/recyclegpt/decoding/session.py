"""A batch while it is decoded: prefill, then steps of one backbone pass, verification and drafting.

Everything happens on the device, in tensors that stay in place: a step never waits for the device and never asks it for
a value, so it can be captured as a CUDA graph. What happened is read from its record, later.

B batch, T = m + 1 tokens of a block, S slots, C model width, V vocabulary, m drafted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from recyclegpt.decoding.drafters import BackbonePass, make_drafter
from recyclegpt.decoding.drafters.module import ModelPass
from recyclegpt.decoding.sampling import Sampler, most_likely, penalised
from recyclegpt.decoding.strategies import DraftTokens, Strategy, VerifyLogits
from recyclegpt.decoding.text_buffer import TextBuffer, row_at
from recyclegpt.models import KVCache, RecycleGPT

Column = TypeVar("Column", Tensor, list[int])


class StepRecord(NamedTuple, Generic[Column]):
    """What a prefill or step did, a number for each row of the batch: tensors on the device, lists on the host."""

    position: Column
    """Where the backbone's newest token stands."""
    num_accepted: Column
    """Drafted tokens that this step's verification kept."""
    num_matched: Column
    """Those that equal the backbone's argmax."""
    num_verified: Column
    """Those that the backbone pass has read."""
    num_drafted: Column
    """Tokens drafted now, after `position`."""


class Session:
    """The tensors of a batch, allocated once, and the step that changes them in place."""

    def __init__(
        self,
        model: RecycleGPT,
        strategy: Strategy,
        sampler: Sampler,
        batch: int,
        num_slots: int,
        backbone_states: ModelPass | None = None,
        recycle: ModelPass | None = None,
    ) -> None:
        """Allocate. `backbone_states` and `recycle` stand in for the model's own in steps, where they are compiled."""
        self.model, self.strategy, self.sampler = model, strategy, sampler
        self.backbone_states = backbone_states or model.backbone_states
        self.m = m = strategy.num_recycled
        self.device, config = model.device, model.config
        self.cache = KVCache(config, config.num_layers, batch, num_slots, model.dtype, self.device)
        self.text = TextBuffer(batch, num_slots, config.vocab_size, self.device)
        sampler.allocate(m, config.vocab_size, self.device)
        self.drafter = make_drafter(model, strategy, sampler, self.text, self.cache, recycle)
        module = model.recyclable if strategy.needs_module else None
        self.tap = None if module is None else module.tap
        self.block_T = torch.arange(m + 1, device=self.device)
        self.record_5B = torch.zeros(5, batch, dtype=torch.long, device=self.device)
        self.record: StepRecord[Tensor] = StepRecord(*self.record_5B)

    def state(self) -> list[Tensor]:
        """All that a step changes, the caches apart: running it again writes the same into those."""
        drafted = (
            []
            if self.drafter is None
            else [self.drafter.num_drafted_B, self.drafter.distributions_BmV, self.drafter.table_BV]
        )
        tensors = [self.text.tokens_BS, self.text.position_B, self.record_5B, *drafted, *self.strategy.state]
        return [tensor for tensor in tensors if tensor is not None]

    def prefill(self, prompts: Sequence[Sequence[int]], limits: Sequence[int], num_slots_read: int) -> None:
        """Read the prompts, padded on the right to one length, write the backbone's first tokens, and draft.

        Padding lies beyond every query until it is overwritten. A row's text never passes position `limits[row]`.
        """
        text, lengths = self.text, [len(prompt) for prompt in prompts]
        width = max(lengths)
        text.tokens_BS.zero_()
        padded = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
        text.tokens_BS[:, :width] = torch.tensor(padded).to(self.device)
        text.position_B.copy_(torch.tensor(lengths))
        text.limit_B.copy_(torch.tensor(limits))
        self.sampler.refill()
        positions_BT = torch.arange(width, device=self.device).expand(len(prompts), width)
        # No slot beyond the prompts is read: how many there are differs between strategies, and torch's attention over
        # a long prompt rounds by how many it reads.
        prompt = text.tokens_BS[:, :width], positions_BT, width
        hidden_BTC, read_BTC = self._backbone(self.model.backbone_states, *prompt)
        last_B = text.position_B - 1
        seen_BTV = self._seen(last_B[:, None])
        logits_BV = self.model.logits(row_at(hidden_BTC, last_B))
        token_B, _ = self.sampler.choose(logits_BV, 0, text.position_B, None if seen_BTV is None else seen_BTV[:, 0])
        text.write(text.position_B, token_B)
        self.record_5B.zero_()
        self.record.position.copy_(text.position_B)
        if self.drafter is not None:
            self.drafter.draft(BackbonePass(read_BTC, positions_BT, last_B, num_slots_read))
            self.record.num_drafted.copy_(self.drafter.num_drafted_B)

    def take_row(self, row: int, other: Session, width: int) -> None:
        """Continue in this row with the only row of another session, which has just read a prompt of `width` tokens."""
        for mine, its in zip(self.state(), other.state(), strict=True):
            of_rows = -1 if mine is self.record_5B else 0
            mine.select(of_rows, row).copy_(its.select(of_rows, 0))
        self.text.limit_B[row] = other.text.limit_B[0]
        self.sampler.generators[row] = other.sampler.generators[0]
        self.sampler.take(self.sampler.generators)
        for mine, its in zip(self._cached(), other._cached(), strict=True):
            mine[row, :, :width].copy_(its[0, :, :width])

    def _cached(self) -> list[Tensor]:
        drafts = None if self.drafter is None else self.drafter.cache
        return [
            tensor for cache in (self.cache, drafts) if cache is not None for tensor in (*cache.keys, *cache.values)
        ]

    def step(self, num_slots_read: int) -> None:
        """One backbone pass over the newest m + 1 tokens, their verification, and m tokens drafted after the result."""
        text, drafter = self.text, self.drafter
        # Cloned, since the drafter counts its next tokens in place before this step is recorded.
        count_B = torch.zeros_like(text.position_B) if drafter is None else drafter.num_drafted_B.clone()
        block_T = self.block_T
        if drafter is not None and drafter.exits_early:
            block_T = block_T[: int(count_B.max()) + 1]  # rows that nobody drafted are not read
        positions_BT = text.position_B[:, None] + block_T
        block_BT = text.tokens_BS.gather(1, positions_BT)
        hidden_BTC, read_BTC = self._backbone(self.backbone_states, block_BT, positions_BT, num_slots_read)
        logits_BTV = self.model.logits(hidden_BTC)
        seen_BTV = self._seen(positions_BT)
        best_BT = most_likely(penalised(logits_BTV, self.sampler.config, seen_BTV))
        chosen_BT: Tensor | None = best_BT if self.sampler.config.greedy else None
        if chosen_BT is None and not self.sampler.rejects:
            chosen_BT = self.sampler.choose_at(logits_BTV, positions_BT + 1, seen_BTV)
        drafts = DraftTokens(block_BT[:, 1:], count_B, None if drafter is None else drafter.distributions_BmV)
        accepted_B, token_B = self.strategy.verify(
            VerifyLogits(logits_BTV, best_BT, chosen_BT, seen_BTV), drafts, self.sampler
        )
        if drafter is not None and drafter.length is not None:
            drafter.length.update(int(accepted_B.sum()), int(count_B.sum()), len(count_B))
        # A row that has ended stays where it is; what it writes there was handed out already.
        text.position_B.copy_(torch.minimum(text.position_B + accepted_B + 1, text.limit_B))
        text.write(text.position_B, token_B)
        if drafter is None:
            self.record.position.copy_(text.position_B)
            return
        matched_Bm = (best_BT[:, :-1] == drafts.tokens_Bm) & (block_T[:-1] < count_B[:, None])
        drafter.draft(BackbonePass(read_BTC, positions_BT, accepted_B, num_slots_read, best_BT))
        record = StepRecord(text.position_B, accepted_B, matched_Bm.sum(dim=1), count_B, drafter.num_drafted_B)
        torch.stack(record, out=self.record_5B)

    def _backbone(
        self, states: ModelPass, tokens_BT: Tensor, positions_BT: Tensor, num_slots_read: int
    ) -> tuple[Tensor, Tensor]:
        """The backbone's states, and those that the drafter reads."""
        if self.tap is not None:
            return self.model.tapped_states(tokens_BT, positions_BT, self.cache, num_slots_read, self.tap)
        hidden_BTC = states(tokens_BT, positions_BT, cache=self.cache, num_slots_read=num_slots_read)
        return hidden_BTC, hidden_BTC

    def _seen(self, positions_BT: Tensor) -> Tensor | None:
        return self.text.seen(positions_BT) if self.sampler.config.penalises else None
