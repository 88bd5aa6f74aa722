"""A one-call draft module as a drafter: the states of all m tokens at once, the tokens chosen one after another.

B batch, T positions, C model width, m drafted tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recyclegpt.decoding.drafters.chain import BackbonePass
from recyclegpt.decoding.drafters.module import ModuleDrafter


class OneCallDrafter(ModuleDrafter):
    """Implements `Drafter`. Its call reads the true pairs of a backbone pass, which its cache needs, and drafts."""

    states_BmC = torch.empty(0)

    def read(self, made: BackbonePass) -> Tensor:
        """Read the true pairs; the state of the first token after them, `(B, C)`."""
        hidden_BTC, positions_BT, newest_B, num_slots_read, _ = made
        module, attend = self.model.recyclable, self.model.attend(self.cache, num_slots_read)
        assert module is not None
        embedded_BTC = self.model.backbone.embed_tokens(self.text.tokens_BS.gather(1, positions_BT + 1))
        self.states_BmC = module.draft(embedded_BTC, hidden_BTC, positions_BT, newest_B, self.m, attend)
        newest_B1 = self.text.position_B[:, None]
        return self._known(0, self.text.tokens_BS.gather(1, newest_B1)[:, 0])

    def following(self, state_BC: Tensor, token_B: Tensor, number: int, num_slots_read: int) -> Tensor:
        """See `ChainDrafter`."""
        return self._known(number, token_B)

    def _known(self, number: int, token_B: Tensor) -> Tensor:
        """The state `(B, C)` of the token after `number` drafted ones, the last of which is `token_B`."""
        module, embed_tokens = self.model.recyclable, self.model.backbone.embed_tokens
        assert module is not None
        return module.follow(self.states_BmC[:, number], embed_tokens(token_B))
