"""The recyclable module as a drafter: it re-reads the true pairs of a backbone pass, then writes m tokens.

Its cache holds exactly the rows that training has seen: a pair (h_t, x_{t+1}) is read as soon as the true state h_t
exists, over the provisional row made while drafting. B batch, T positions, C model width, V vocabulary, D draft
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recyclegpt.decoding.cpu_layers import KernelGPT
from recyclegpt.decoding.draft_length import DraftLength, cost_of_a_draft
from recyclegpt.decoding.sampling import Sampler, largest_probability
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.decoding.text_buffer import TextBuffer, row_at
from recyclegpt.models import KVCache, RecycleGPT

ModelPass = Callable[..., Tensor]
"""`RecycleGPT.backbone_states` or `.recycle`, compiled or not."""
EARLY_EXIT_DEVICES = ("cpu",)
"""Devices that lose nothing when the host asks for a value: there, drafting ends once no row is confident."""


class ModuleDrafter:
    """Implements `Drafter`."""

    def __init__(
        self,
        model: RecycleGPT,
        strategy: Strategy,
        sampler: Sampler,
        text: TextBuffer,
        recycle: ModelPass | None,
        backbone_cache: KVCache,
    ) -> None:
        """Allocate. `recycle` stands in for the model's own in passes of a step's shape, where it is compiled.

        A kind that taps the backbone has its keys and values in `backbone_cache`.
        """
        self.model, self.sampler, self.text = model, sampler, text
        self.recycle = recycle or model.recycle
        self.m, self.fixed_threshold = strategy.num_recycled, strategy.confidence_threshold
        self.block = self.m + 1
        self.exits_early = model.device.type in EARLY_EXIT_DEVICES
        batch, num_slots = text.tokens_BS.shape
        assert model.recyclable is not None
        self.cache = backbone_cache
        if model.recyclable.tap is None:
            self.cache = KVCache(model.config, model.recyclable.depth, batch, num_slots, model.dtype, model.device)
        self.num_drafted_B = torch.zeros(batch, dtype=torch.long, device=model.device)
        self.length: DraftLength | None = None
        if strategy.adaptive and self.exits_early and not sampler.rejects:  # what is rejected depends on the length
            self.length = DraftLength(cost_of_a_draft(model, self.m))
        self.distributions_BmV: Tensor | None = None
        if strategy.lossless and sampler.rejects:
            shape, wide = (batch, self.m, model.config.vocab_size), torch.promote_types(model.dtype, torch.float32)
            self.distributions_BmV = torch.zeros(shape, dtype=wide, device=model.device)

    @property
    def threshold(self) -> float:
        """Drafting goes on while the product of the module's largest probabilities is above it; 0: always."""
        return self.fixed_threshold if self.length is None else self.length.cutoff

    def draft(self, hidden_BTC: Tensor, positions_BT: Tensor, newest_B: Tensor, num_slots_read: int) -> None:
        """Re-read the true pairs in one call, then draft from the module's state of the newest one."""
        self.propose(self.read(hidden_BTC, positions_BT, newest_B, num_slots_read), num_slots_read)

    def read(self, hidden_BTC: Tensor, positions_BT: Tensor, newest_B: Tensor, num_slots_read: int) -> Tensor:
        """Re-read the true pairs; the module's state of the newest one, `(B, C)`."""
        following_BT = self.text.tokens_BS.gather(1, positions_BT + 1)
        # A prompt has a width of its own, for which compiling would not pay.
        recycle = self.recycle if positions_BT.shape[1] == self.block else self.model.recycle
        recycled_BTC = recycle(following_BT, hidden_BTC, positions_BT, cache=self.cache, num_slots_read=num_slots_read)
        return row_at(recycled_BTC, newest_B)

    def propose(self, state_BC: Tensor, num_slots_read: int) -> None:
        """Draft m tokens from this state, one call each after the first; greedy ones in one call on the CPU kernels."""
        if isinstance(self.model, KernelGPT) and self.sampler.config.is_argmax and self.recycle == self.model.recycle:
            num_drafted_B = self.model.draft_greedily(
                state_BC, self.text.tokens_BS, self.text.position_B, self.m, self.threshold, self.cache
            )
            if num_drafted_B is not None:
                self.num_drafted_B.copy_(num_drafted_B)
                return
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
        """The state `(B, C)` after the `number`-th drafted token, `token_B`, which was drafted from `state_BC`.

        The module's own state stands in for the one not computed yet: r_t for h_{t+1}, at position t + 1.
        """
        inputs = token_B[:, None], state_BC[:, None], (self.text.position_B + number - 1)[:, None]
        return self.recycle(*inputs, cache=self.cache, num_slots_read=num_slots_read).squeeze(1)
