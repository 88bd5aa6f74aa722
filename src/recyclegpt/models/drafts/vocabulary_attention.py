"""LAVA NAT (arXiv 2002.03084): attention over the vocabulary, and a look at the neighbour that comes next.

B batch, T positions, C model width, D draft vocabulary, K steps, m rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.models.backbone import Backbone
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import Rows, in_chunks
from recyclegpt.models.drafts.recyclable import RecyclableModule
from recyclegpt.models.layers import AttentionInputs


class VocabularyAttention(RecyclableModule):
    """`r' = r + W_a softmax(r E^T) E + W_n softmax(n E^T) E`, with `n = r + W_l r` trained to predict the next token.

    r is the recyclable module's state, E the embedding of the draft vocabulary, taken as given. The look-around loss is
    the cross entropy of n at step k < K with the token that step k + 1 drafts; W_a and W_n are zero at first.

    What it is not: a non-autoregressive translator decodes all places at once and predicts both neighbours; the left
    one is known here. Both attentions read E, which costs two more LM heads a call, so keep D small. Weights and the
    share of the look-around loss are this project's choice.
    """

    own_share = 0.2

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__(config, recycle)
        self.look, self.vocabulary, self.neighbour = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(3)
        )
        self.seen: list[Tensor] | None = None
        """In training, where the states before the attention are kept."""

    def attach(self, backbone: Backbone) -> None:
        """See `DraftModule`."""
        self.__dict__["embed_tokens"] = backbone.embed_tokens  # not registered: its weight is the backbone's

    embed_tokens: nn.Embedding

    def balance(self, embedding_std: float) -> None:
        """As the recyclable module, which it begins as."""
        super().balance(embedding_std)
        for linear in (self.vocabulary, self.neighbour):
            nn.init.zeros_(linear.weight)

    def forward(self, embedded_BTC: Tensor, hidden_BTC: Tensor, attending: AttentionInputs) -> Tensor:
        """See `RecyclableModule`."""
        state_BTC = super().forward(embedded_BTC, hidden_BTC, attending)
        if self.seen is not None:
            self.seen.append(state_BTC)
        embedding_DC = self.embed_tokens.weight.detach()
        if self.draft_ids is not None:
            embedding_DC = embedding_DC[self.draft_ids]

        def attend(state_mC: Tensor) -> Tensor:
            near_mC = state_mC + self.look(state_mC)
            whole_mC, next_mC = (
                F.linear(x_mC, embedding_DC).softmax(dim=-1) @ embedding_DC for x_mC in (state_mC, near_mC)
            )
            return state_mC + self.vocabulary(whole_mC) + self.neighbour(next_mC)

        return torch.cat(in_chunks(attend, state_BTC.flatten(0, 1))).view_as(state_BTC)

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """See `DraftModule`."""
        self.seen = rows.queries
        try:
            return super().states(rows, num_steps)
        finally:
            self.seen = None

    def own_loss(self, rows: Rows) -> Tensor:
        """See `DraftModule`; the mean over the steps that have a next one."""
        head_VC, num_steps, total = rows.head_VC, len(rows.queries) - 1, rows.hidden_BTC.new_zeros(())

        def losses(state_mC: Tensor, label_m: Tensor, counted_m: Tensor) -> Tensor:
            logits_mV = F.linear(state_mC + self.look(state_mC), head_VC)
            nll_m = F.cross_entropy(
                logits_mV.to(torch.promote_types(logits_mV.dtype, torch.float32)), label_m, reduction="none"
            )
            return (nll_m * counted_m).sum()

        for step, state_BTC in enumerate(rows.queries[:-1], start=1):
            given = state_BTC.flatten(0, 1), rows.views_NBT[step + 2].flatten(), rows.counted(step + 1).flatten()
            total = total + torch.stack(in_chunks(losses, *given)).sum() / (num_steps * len(given[1]))
        return total


Module = VocabularyAttention
