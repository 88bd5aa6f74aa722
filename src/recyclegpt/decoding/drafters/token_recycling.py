"""Token recycling as a drafter: what the backbone last thought likely after a token is drafted when the token returns.

A table holds for every token the backbone's choice after it, renewed by all rows of each pass, those of rejected drafts
too, and drafting follows it from the newest token on (Luo et al., arXiv 2408.08696,
github.com/Luowaterbi/TokenRecycling). It needs no module and no training, and knows no context: a control that every
trained drafter has to beat. Theirs keeps eight choices a token and verifies a tree of 80 nodes; a chain reads only the
first choice, so that is all the table holds, and each text begins with an empty one.

B batch, T positions, C model width, V vocabulary, m drafted tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recyclegpt.decoding.drafters.chain import BackbonePass, ChainDrafter
from recyclegpt.decoding.sampling import Sampler, most_likely
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.decoding.text_buffer import TextBuffer
from recyclegpt.models import RecycleGPT

PROMPT_ROWS = 256
"""Rows of a prompt whose logits are held at a time."""


class TokenRecyclingDrafter(ChainDrafter):
    """Implements `Drafter`. A drafted token is certain, as in n-gram lookup; a chain ends where the table is empty."""

    def __init__(self, model: RecycleGPT, strategy: Strategy, sampler: Sampler, text: TextBuffer) -> None:
        """Allocate."""
        super().__init__(model, strategy, sampler, text)
        shape = len(text.tokens_BS), text.vocab_size + 1
        self.table_BV: Tensor | None = torch.zeros(shape, dtype=torch.long, device=text.device)
        """The token after each; -1: none yet. The last column takes what is not to be kept."""

    def draft(self, made: BackbonePass) -> None:
        """Renew the table by the rows just read, then follow it. In a prefill `best_BT` is made here."""
        hidden_BTC, positions_BT, newest_B, _, best_BT = made
        assert self.table_BV is not None
        block_T = torch.arange(positions_BT.shape[1], device=self.text.device)
        if best_BT is None:
            self.table_BV.fill_(-1)
            parts = hidden_BTC.split(PROMPT_ROWS, dim=1)
            best_BT = torch.cat([most_likely(self.model.logits(part_BTC)) for part_BTC in parts], dim=1)
            read_BT = block_T <= newest_B[:, None]
        else:
            # The newest token stands where the first rejected one was read, which is thus lost.
            read_BT = (block_T <= self.num_drafted_B[:, None]) & (block_T != newest_B[:, None] + 1)
        tokens_BT = self.text.tokens_BS.gather(1, positions_BT).masked_fill(~read_BT, self.text.vocab_size)
        for token_B1, best_B1 in zip(tokens_BT.split(1, dim=1), best_BT.split(1, dim=1), strict=True):
            self.table_BV.scatter_(1, token_B1, best_B1)  # one after another: of equal tokens the last counts
        self.table_BV[:, -1] = -1
        newest_B1 = self.text.position_B[:, None]
        token_B1 = self.text.tokens_BS.gather(1, newest_B1)
        self.num_drafted_B.zero_()
        for number in range(1, self.m + 1):
            token_B1 = self.table_BV.gather(1, token_B1)  # after -1, the last column, comes -1
            self.num_drafted_B.add_(token_B1[:, 0] >= 0)
            self.text.tokens_BS.scatter_(1, newest_B1 + number, token_B1.clamp(min=0))
            if self.distributions_BmV is not None:
                self.distributions_BmV[:, number - 1].zero_().scatter_(1, token_B1.clamp(min=0), 1)
            token_B1 = torch.where(token_B1 < 0, self.text.vocab_size, token_B1)
