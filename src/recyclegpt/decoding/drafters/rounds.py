"""A module that drafts its block in rounds as a drafter: tokens are chosen out of order.

B batch, T positions, C model width, D draft vocabulary, m drafted tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recyclegpt.decoding.drafters.chain import BackbonePass
from recyclegpt.decoding.drafters.one_call import OneCallDrafter
from recyclegpt.decoding.sampling import largest_probability, most_likely
from recyclegpt.models.rounds import RoundsModule


class RoundsDrafter(OneCallDrafter):
    """Implements `Drafter`. Whole blocks are drafted, of which the first m tokens are proposed.

    Under rejection sampling each is the most likely one, and certain: a token drawn after one that follows it in the
    text would not have the distribution that verification has to know.
    """

    def read(self, made: BackbonePass) -> Tensor:
        """Read the true pairs in the first call, and draft the block."""
        hidden_BTC, positions_BT, newest_B, num_slots_read, _ = made
        config, draft_ids, embed_tokens = self.sampler.config, self.model.draft_ids, self.model.backbone.embed_tokens
        chances_mB = torch.ones(self.m, len(newest_B), device=newest_B.device)

        def choose(place: int, state_BC: Tensor) -> Tensor:
            logits_BD, position_B = self.model.draft_logits(state_BC), self.text.position_B + place
            if place <= self.m and not self.sampler.rejects:
                token_B, _ = self.sampler.choose(logits_BD, place, position_B, None, draft_ids)
            else:
                token_B = most_likely(logits_BD)
                token_B = token_B if draft_ids is None else draft_ids[token_B]
            if place <= self.m:  # what comes later may still say something about those before
                self.text.write(position_B, token_B)
                chances_mB[place - 1] = largest_probability(logits_BD, config)
                if self.distributions_BmV is not None:
                    self.distributions_BmV[:, place - 1].zero_().scatter_(1, token_B[:, None], 1)
            return embed_tokens(token_B)

        module, attend = self.model.recyclable, self.model.attend(self.cache, num_slots_read)
        assert isinstance(module, RoundsModule)
        embedded_BTC = embed_tokens(self.text.tokens_BS.gather(1, positions_BT + 1))
        module.draft_in_rounds(embedded_BTC, hidden_BTC, positions_BT, newest_B, attend, choose)
        sure_mB = chances_mB.cumprod(dim=0) > (self.threshold or -1)
        self.num_drafted_B.copy_(sure_mB.sum(dim=0))
        return hidden_BTC[:, 0]

    def propose(self, state_BC: Tensor, num_slots_read: int) -> None:
        """The block is there already."""

    def following(self, state_BC: Tensor, token_B: Tensor, number: int, num_slots_read: int) -> Tensor:
        """See `ChainDrafter`; nothing is left to compute."""
        return state_BC
