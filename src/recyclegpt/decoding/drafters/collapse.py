"""Query rows as a drafter: the best token of each row, repetitions merged and blanks dropped (CTC).

B batch, C model width, Q query rows, m drafted tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recyclegpt.decoding.drafters.one_call import OneCallDrafter
from recyclegpt.models.drafts.query_ctc import QueryCTC


class CollapseDrafter(OneCallDrafter):
    """Implements `Drafter`. What is left may be fewer than m tokens, or none; they are certain, as by lookup."""

    def propose(self, state_BC: Tensor, num_slots_read: int) -> None:
        """Write the first m tokens that are left."""
        module, draft_ids = self.model.recyclable, self.model.draft_ids
        assert isinstance(module, QueryCTC)
        best_BQ, kept_BQ, p_BQ = module.align(self.states_BmC, self.model.draft_logits(self.states_BmC))
        place_BQ = (kept_BQ.cumsum(dim=1) - 1).masked_fill(~kept_BQ, self.m).clamp(max=self.m)
        token_BQ = best_BQ.masked_fill(~kept_BQ, 0)
        token_BQ = token_BQ if draft_ids is None else draft_ids[token_BQ]
        # One column more takes what is dropped.
        tokens_Bm = torch.zeros(len(best_BQ), self.m + 1, dtype=torch.long, device=best_BQ.device)
        tokens_Bm = tokens_Bm.scatter(1, place_BQ, token_BQ)[:, :-1]
        sure_BQ = kept_BQ & (place_BQ < self.m) & (p_BQ.cumprod(dim=1) > (self.threshold or -1))
        self.num_drafted_B.copy_(sure_BQ.sum(dim=1))
        ahead_m = torch.arange(1, self.m + 1, device=best_BQ.device)
        self.text.tokens_BS.scatter_(1, self.text.position_B[:, None] + ahead_m, tokens_Bm)
        if self.distributions_BmV is not None:
            self.distributions_BmV.zero_().scatter_(2, tokens_Bm[..., None], 1)
