"""The recyclable module as a drafter: it re-reads the true pairs of a backbone pass, then writes m tokens.

Its cache holds exactly the rows that training has seen: a pair (h_t, x_{t+1}) is read as soon as the true state h_t
exists, over the provisional row made while drafting. B batch, T positions, C model width, V vocabulary, D draft
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from recyclegpt.decoding.cpu_layers import KernelGPT
from recyclegpt.decoding.draft_length import DraftLength, cost_of_a_draft
from recyclegpt.decoding.drafters.chain import BackbonePass, ChainDrafter
from recyclegpt.decoding.sampling import Sampler
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.decoding.text_buffer import TextBuffer, row_at
from recyclegpt.models import KVCache, RecycleGPT

ModelPass = Callable[..., Tensor]
"""`RecycleGPT.backbone_states` or `.recycle`, compiled or not."""


class ModuleDrafter(ChainDrafter):
    """Implements `Drafter`."""

    def __init__(
        self,
        model: RecycleGPT,
        strategy: Strategy,
        sampler: Sampler,
        text: TextBuffer,
        backbone_cache: KVCache,
        recycle: ModelPass | None = None,
    ) -> None:
        """Allocate. `recycle` stands in for the model's own in passes of a step's shape, where it is compiled.

        A kind that taps the backbone has its keys and values in `backbone_cache`.
        """
        super().__init__(model, strategy, sampler, text)
        self.recycle = recycle or model.recycle
        self.block = self.m + 1
        batch, num_slots = text.tokens_BS.shape
        assert model.recyclable is not None
        self.cache: KVCache = backbone_cache
        if model.recyclable.tap is None:
            self.cache = KVCache(model.config, model.recyclable.depth, batch, num_slots, model.dtype, model.device)
        if strategy.adaptive and self.exits_early and not sampler.rejects:  # what is rejected depends on the length
            self.length = DraftLength(cost_of_a_draft(model, self.m))

    def draft(self, made: BackbonePass) -> None:
        """Re-read the true pairs in one call, then draft from the module's state of the newest one."""
        self.propose(self.read(made), made.num_slots_read)

    def read(self, made: BackbonePass) -> Tensor:
        """Re-read the true pairs; the module's state of the newest one, `(B, C)`."""
        hidden_BTC, positions_BT, newest_B, num_slots_read, _ = made
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
        super().propose(state_BC, num_slots_read)

    def following(self, state_BC: Tensor, token_B: Tensor, number: int, num_slots_read: int) -> Tensor:
        """See `ChainDrafter`.

        The module's own state stands in for the one not computed yet: r_t for h_{t+1}, at position t + 1.
        """
        inputs = token_B[:, None], state_BC[:, None], (self.text.position_B + number - 1)[:, None]
        return self.recycle(*inputs, cache=self.cache, num_slots_read=num_slots_read).squeeze(1)
