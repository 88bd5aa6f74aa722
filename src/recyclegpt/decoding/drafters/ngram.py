"""N-gram lookup as a drafter: what followed the last tokens the last time they stood in prompt or text.

It needs no module and no training and costs next to nothing, so every trained drafter has to beat it (prompt lookup,
github.com/apoorvumang/prompt-lookup-decoding). B batch, S slots, C model width, V vocabulary, m drafted tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recyclegpt.decoding.drafters.chain import EARLY_EXIT_DEVICES, BackbonePass
from recyclegpt.decoding.drafters.module import ModuleDrafter
from recyclegpt.decoding.sampling import Sampler
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.decoding.text_buffer import TextBuffer

LONGEST_MATCH = 3


def look_up(text: TextBuffer, num: int, num_slots_read: int) -> tuple[Tensor, Tensor]:
    """Tokens `(B, num)` that may follow each row's newest one, and whether the row has any `(B,)`.

    They follow the longest earlier match of the last tokens, three to one, the newest of equals. Where the match is
    less than `num` tokens back, the text is taken to repeat from there on.
    """
    tokens_BS, newest_B1 = text.tokens_BS[:, :num_slots_read], text.position_B[:, None]
    slots_S = torch.arange(tokens_BS.shape[1], device=text.device)
    same_BS = slots_S < newest_B1
    length_BS = torch.zeros_like(tokens_BS)
    for back in range(LONGEST_MATCH):
        token_B1 = tokens_BS.gather(1, (newest_B1 - back).clamp(min=0))
        earlier_BS = F.pad(tokens_BS, (back, 0), value=-1)[:, : tokens_BS.shape[1]]
        same_BS = same_BS & (earlier_BS == token_B1) & (newest_B1 >= back)
        length_BS = length_BS + same_BS
    best_B = (length_BS * len(slots_S) + slots_S).masked_fill(length_BS == 0, -1).amax(dim=1)
    end_B1 = (best_B % len(slots_S))[:, None]
    period_B1 = (newest_B1 - end_B1).clamp(min=1)
    following_Bm = end_B1 + 1 + torch.arange(num, device=text.device) % period_B1
    return tokens_BS.gather(1, following_Bm.clamp(max=len(slots_S) - 1)), best_B >= 0


class NgramDrafter:
    """Implements `Drafter`. Rows without a match draft nothing, or what the recyclable module drafts if there is one.

    A drafted token is certain, so its distribution is 1 at that token: rejection sampling accepts it with the
    backbone's probability.
    """

    table_BV: Tensor | None = None

    def __init__(self, strategy: Strategy, sampler: Sampler, text: TextBuffer, module: ModuleDrafter | None) -> None:
        """Allocate; `module` drafts where nothing matches."""
        self.text, self.m, self.module = text, strategy.num_recycled, module
        batch, device = len(text.tokens_BS), text.device
        self.num_drafted_B = torch.zeros(batch, dtype=torch.long, device=device)
        self.exits_early = device.type in EARLY_EXIT_DEVICES
        self.cache = None if module is None else module.cache
        self.length = None if module is None else module.length
        self.distributions_BmV: Tensor | None = None
        if module is not None:
            self.num_drafted_B, self.distributions_BmV = module.num_drafted_B, module.distributions_BmV
        elif strategy.lossless and sampler.rejects:
            self.distributions_BmV = torch.zeros(batch, self.m, text.vocab_size, device=device)

    def draft(self, made: BackbonePass) -> None:
        """Look the last tokens up; the module reads the true pairs in any case, which its cache needs."""
        tokens_Bm, found_B = look_up(self.text, self.m, made.num_slots_read)
        places_Bm = self.text.position_B[:, None] + 1 + torch.arange(self.m, device=self.text.device)
        if self.module is None:
            self.num_drafted_B.copy_(found_B * self.m)
        else:
            state_BC = self.module.read(made)
            if not (self.exits_early and bool(found_B.all())):
                self.module.propose(state_BC, made.num_slots_read)
            tokens_Bm = torch.where(found_B[:, None], tokens_Bm, self.text.tokens_BS.gather(1, places_Bm))
            self.num_drafted_B.masked_fill_(found_B, self.m)
        self.text.tokens_BS.scatter_(1, places_Bm, tokens_Bm)
        if self.distributions_BmV is not None:
            certain_BmV = torch.zeros_like(self.distributions_BmV).scatter_(2, tokens_Bm[..., None], 1)
            self.distributions_BmV.copy_(torch.where(found_B[:, None, None], certain_BmV, self.distributions_BmV))
