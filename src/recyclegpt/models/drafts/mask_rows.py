"""Mask rows: one call drafts K tokens, as in P-EAGLE and DSpark (arXiv 2607.05147), with a low-rank Markov head.

B batch, T positions, C model width, R rows of a call, m drafted tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import Attend, Rows, rows_at, rows_of_call
from recyclegpt.models.drafts.recyclable import RecyclableModule


class MaskRows(RecyclableModule):
    """The recyclable module, whose k-th row beyond the true pair reads `[e_k ; h_t]` with a learned mask embedding e_k.

    Rows of a draft attend causally to the true pairs and to each other. The Markov head tells the LM head the token
    just before: `r_k + U_2 U_1 E(x_{t+k})`, rank `markov_rank`, zero at first; so only that head waits for a token.

    What it is not: DSpark's Markov table is `W_1[x] W_2` with rows of its own for each token, here they are tied to the
    embedding and the LM head (github.com/vllm-project/speculators, `dspark`); P-EAGLE and DFlash train at sampled
    anchors, here every row is one, as K is small; DFlash's rows attend in both directions.
    """

    one_call = True

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__(config, recycle)
        width = config.hidden_size
        self.mask_embed = nn.Embedding(recycle.num_drafted or 1, width)
        self.markov: nn.Sequential | None = None
        if recycle.markov_rank:
            rank = recycle.markov_rank
            self.markov = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))

    def balance(self, embedding_std: float) -> None:
        """As the recyclable module; mask embeddings have the size of a token's."""
        super().balance(embedding_std)
        nn.init.normal_(self.mask_embed.weight, std=embedding_std)
        if self.markov is not None:
            nn.init.zeros_(self.markov[1].weight)  # type: ignore[arg-type]

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """See `DraftModule`."""
        states = super().states(rows, num_steps)
        if self.markov is None:
            return states
        return [self.follow(state_BTC, rows.embedded(step)) for step, state_BTC in enumerate(states, start=1)]

    def inputs(self, rows: Rows, step: int, state_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """See `RecyclableModule`; a mask row reads the backbone's state again."""
        hidden_BTC = rows.hidden_BTC
        embedded_BTC = rows.embedded(1) if step == 1 else self.mask_embed.weight[step - 1].expand_as(hidden_BTC)
        return embedded_BTC, hidden_BTC

    def follow(self, state_BTC: Tensor, embedded_BTC: Tensor) -> Tensor:
        """Add the Markov head's part."""
        return state_BTC if self.markov is None else state_BTC + self.markov(embedded_BTC)

    def draft(
        self, embedded_BTC: Tensor, hidden_BTC: Tensor, positions_BT: Tensor, newest_B: Tensor, num: int, attend: Attend
    ) -> Tensor:
        """See `DraftModule`."""
        positions_BR, pair_BR, ahead_BR = rows_of_call(positions_BT, newest_B, num)
        mask_BRC = self.mask_embed(ahead_BR.clamp(max=num - 1))
        embedded_BRC = torch.where(ahead_BR[..., None] > 0, mask_BRC, rows_at(embedded_BTC, pair_BR))
        states_BRC = self(embedded_BRC, rows_at(hidden_BTC, pair_BR), attend(positions_BR))
        return rows_at(states_BRC, newest_B[:, None] + torch.arange(num, device=newest_B.device))


Module = MaskRows
