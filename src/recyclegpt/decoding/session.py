"""One batch on its way: prefill, then cycles of one backbone pass and one module pass, on the device alone.

Both caches hold at every moment exactly the rows that training has seen: the backbone reads each token once, and the
module re-reads every pair (h_t, x_{t+1}) as soon as the true state h_t exists, over the provisional rows it made while
recycling. A cycle never waits for the device and never asks it for a value; what happened is read from records, later.

B batch, T = m + 1 tokens of a block, S positions, C model width, V vocabulary, m recycled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recyclegpt.decoding.sampling import Sampler, largest_probability, most_likely, penalised
from recyclegpt.decoding.strategies import DraftTokens, Strategy, VerifyLogits
from recyclegpt.models import KVCache, RecycleGPT

Read = Callable[..., Tensor]
"""`RecycleGPT.read` or `.recycle`, compiled or not."""
FREE_TO_ASK = ("cpu",)
"""Devices that lose nothing when the host asks for a value: there, calls whose tokens nobody keeps are spared."""


class Session:
    """The tensors of a batch, allocated once, and the cycle that changes them in place.

    `tokens_BS` is the text at its positions. `position_B` is where the backbone's last token stands: the next block is
    that token and the m recycled after it, of which the module stands behind the first `num_drafted_B`.
    """

    def __init__(
        self,
        model: RecycleGPT,
        strategy: Strategy,
        sampler: Sampler,
        batch: int,
        num_slots: int,
        read: Read | None = None,
        recycle: Read | None = None,
    ) -> None:
        """Allocate. `read` and `recycle` stand in for the model's own in the cycle, where they are compiled."""
        self.model, self.strategy, self.sampler = model, strategy, sampler
        self.backbone_states, self.recycle = read or model.backbone_states, recycle or model.recycle
        self.m = m = strategy.num_recycled
        self.device, config = model.device, model.config
        depth = model.recycle_config.num_layers if m else 0
        self.cache = KVCache(config, config.num_layers, batch, num_slots, model.dtype, self.device)
        self.draft_cache = KVCache(config, depth, batch, num_slots, model.dtype, self.device)
        self.tokens_BS = torch.zeros(batch, num_slots, dtype=torch.long, device=self.device)
        self.position_B = torch.zeros(batch, dtype=torch.long, device=self.device)
        self.limit_B = torch.zeros_like(self.position_B)
        self.num_drafted_B = torch.zeros_like(self.position_B)
        self.block_T = torch.arange(m + 1, device=self.device)
        self.first_row_B = torch.arange(batch, device=self.device) * (m + 1)
        self.record_B5 = torch.zeros(batch, 5, dtype=torch.long, device=self.device)
        sampler.allocate(m, config.vocab_size, self.device)
        self.proposed_BmV: Tensor | None = None
        if m and strategy.lossless and not sampler.config.greedy:
            wide = torch.float64 if model.dtype == torch.float64 else torch.float32
            self.proposed_BmV = torch.zeros(batch, m, config.vocab_size, dtype=wide, device=self.device)

    @property
    def cache_bytes(self) -> int:
        """Memory of both caches."""
        return self.cache.nbytes + self.draft_cache.nbytes

    def begin(self, prompts: Sequence[Sequence[int]], limits: Sequence[int], num_slots_read: int) -> None:
        """Read the prompts, padded on the right to one length, and write the first tokens.

        Padding lies beyond every query until it is overwritten. A row's text never passes position `limits[row]`.
        """
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        rows = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            rows[row, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
        self.tokens_BS.zero_()
        self.tokens_BS[:, :width] = rows.to(self.device)
        self.position_B.copy_(torch.tensor(lengths))
        self.limit_B.copy_(torch.tensor(limits))
        self.sampler.refill()
        positions_BT = torch.arange(width, device=self.device).expand(len(prompts), width)
        tokens_BT = self.tokens_BS[:, :width]
        hidden_BTC = self.model.backbone_states(
            tokens_BT, positions_BT, cache=self.cache, num_slots_read=num_slots_read
        )
        last_B = self.position_B - 1
        seen_BV = self._seen(last_B[:, None])
        logits_BV = self.model.logits(_at(hidden_BTC, last_B))
        token_B, _ = self.sampler.choose(logits_BV, 0, None if seen_BV is None else seen_BV[:, 0])
        self._write(self.position_B, token_B)
        if self.m:
            following_BT = self.tokens_BS[:, 1 : width + 1]
            recycled_BTC = self.model.recycle(
                following_BT, hidden_BTC, positions_BT, cache=self.draft_cache, num_slots_read=num_slots_read
            )
            self._propose(_at(recycled_BTC, last_B), num_slots_read)
        self.record_B5.zero_()
        self.record_B5[:, 0], self.record_B5[:, 4] = self.position_B, self.num_drafted_B

    def cycle(self, num_slots_read: int) -> None:
        """One backbone pass over the newest m + 1 tokens, one module pass over the pairs it completes, m proposals.

        `record_B5` then holds, for each row: where the backbone's new token stands, how many recycled tokens were kept,
        how many the backbone agrees with, how many had been offered, and how many are offered now.
        """
        positions_BT = self.position_B[:, None] + self.block_T
        block_BT = self.tokens_BS.gather(1, positions_BT)
        hidden_BTC = self.backbone_states(block_BT, positions_BT, cache=self.cache, num_slots_read=num_slots_read)
        logits_BTV = self.model.logits(hidden_BTC)
        seen_BTV = self._seen(positions_BT)
        best_BT = most_likely(penalised(logits_BTV, self.sampler.config, seen_BTV))
        # A copy, since the next proposals are counted in place before this cycle is recorded.
        proposals = DraftTokens(block_BT[:, 1:], self.num_drafted_B.clone(), self.proposed_BmV)
        kept_B, token_B = self.strategy.verify(VerifyLogits(logits_BTV, best_BT, seen_BTV), proposals, self.sampler)
        agreed_Bm = (best_BT[:, :-1] == proposals.tokens_Bm) & (self.block_T[:-1] < proposals.count_B[:, None])
        before = [kept_B, agreed_Bm.sum(dim=1), proposals.count_B] if self.m else [self.num_drafted_B] * 3
        # A row that has ended stays where it is; what it writes there was handed out already.
        self.position_B.copy_(torch.minimum(self.position_B + kept_B + 1, self.limit_B))
        self._write(self.position_B, token_B)
        if self.m:
            following_BT = self.tokens_BS.gather(1, positions_BT + 1)
            recycled_BTC = self.recycle(
                following_BT, hidden_BTC, positions_BT, cache=self.draft_cache, num_slots_read=num_slots_read
            )
            state_BC = recycled_BTC.flatten(0, 1).index_select(0, self.first_row_B + kept_B)
            self._propose(state_BC, num_slots_read)
        torch.stack([self.position_B, *before, self.num_drafted_B], dim=1, out=self.record_B5)

    def _propose(self, state_BC: Tensor, num_slots_read: int) -> None:
        """Let the module write m tokens after the backbone's, from its state of the newest pair."""
        threshold = self.strategy.confidence
        sure_B: Tensor | None = None
        self.num_drafted_B.fill_(0 if threshold > 0 else self.m)
        for step in range(1, self.m + 1):
            logits_BV = self.model.logits(state_BC)
            position_B = self.position_B + step
            seen_BTV = self._seen((position_B - 1)[:, None]) if self.sampler.config.penalises else None
            seen_BV = None if seen_BTV is None else seen_BTV[:, 0]
            token_B, distribution_BV = self.sampler.choose(logits_BV, step, seen_BV)
            self._write(position_B, token_B)
            if self.proposed_BmV is not None and distribution_BV is not None:
                self.proposed_BmV[:, step - 1] = distribution_BV
            if threshold > 0:
                now_B = largest_probability(logits_BV, self.sampler.config, seen_BV) > threshold
                sure_B = now_B if sure_B is None else sure_B & now_B
                self.num_drafted_B.add_(sure_B)
                if self.device.type in FREE_TO_ASK and not bool(sure_B.any()):
                    break
            if step < self.m:
                # The module's own state stands in for the one not computed yet: r_t for h_{t+1}, at position t + 1.
                state_BC = self.recycle(
                    token_B[:, None],
                    state_BC[:, None],
                    (position_B - 1)[:, None],
                    cache=self.draft_cache,
                    num_slots_read=num_slots_read,
                ).squeeze(1)

    def _write(self, positions_B: Tensor, token_B: Tensor) -> None:
        self.tokens_BS.scatter_(1, positions_B[:, None], token_B[:, None])

    def _seen(self, positions_BT: Tensor) -> Tensor | None:
        """Which tokens stand at or before each position, `(B, T, V)`; None where no penalty asks."""
        if not self.sampler.config.penalises:
            return None
        vocab_size = self.model.config.vocab_size
        slots_S = torch.arange(self.tokens_BS.shape[1], device=self.device)
        later_BTS = slots_S > positions_BT[:, :, None]
        # Later tokens are counted as one beyond the vocabulary, which is cut off again.
        index_BTS = self.tokens_BS[:, None].expand_as(later_BTS).masked_fill(later_BTS, vocab_size)
        seen_BTV = torch.zeros(*positions_BT.shape, vocab_size + 1, dtype=torch.bool, device=self.device)
        return seen_BTV.scatter_(2, index_BTS, True)[..., :-1]


def _at(states_BTC: Tensor, index_B: Tensor) -> Tensor:
    """Row `index_B[b]` of each batch entry, `(B, C)`."""
    return states_BTC[torch.arange(len(index_B), device=index_B.device), index_B]
