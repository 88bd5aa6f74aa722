"""Medusa's heads (Cai et al., arXiv 2401.10774): the k-th predicts x_{t+1+k} from the backbone's state h_t alone.

B batch, T positions, C model width, K heads, m drafted tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import Attend, DraftModule, Rows


class Medusa(DraftModule):
    """`r_k = h + SiLU(W_k h)`, `num_layers` such blocks in a head, W_k = 0 at first (github.com/FasterDecoding/Medusa).

    It reads no token, so head k does not know what heads 1..k-1 have chosen, and needs no cache. What it is not: the
    heads share the backbone's LM head, where Medusa-1 gives each a copy of its own; drafts are a chain, not a tree;
    lossless rows have no typical acceptance.
    """

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__(config, recycle)
        width = config.hidden_size
        self.layers = nn.ModuleList()
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(recycle.num_layers))
            for _ in range(recycle.num_drafted or 0)
        )

    def balance(self, embedding_std: float) -> None:
        """Let every head begin as the backbone's own prediction."""
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """See `DraftModule`."""
        return [self._head(number, rows.hidden_BTC) for number in range(num_steps)]

    def draft(
        self, embedded_BTC: Tensor, hidden_BTC: Tensor, positions_BT: Tensor, newest_B: Tensor, num: int, attend: Attend
    ) -> Tensor:
        """See `DraftModule`."""
        hidden_BC = hidden_BTC[torch.arange(len(newest_B), device=newest_B.device), newest_B]
        return torch.stack([self._head(number, hidden_BC) for number in range(num)], dim=1)

    def _head(self, number: int, state: Tensor) -> Tensor:
        for block in self.heads[number]:  # type: ignore[attr-defined]
            state = state + F.silu(block(state))
        return state


Module = Medusa
