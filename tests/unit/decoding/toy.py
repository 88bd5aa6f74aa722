"""A model whose every token is known in advance: the backbone counts upwards, the module agrees where it should."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recyclegpt.models import ModelConfig, RecycleConfig
from recyclegpt.models.drafts.recyclable import RecyclableModule


class CountingModel(nn.Module):
    """Backbone: x_{t+1} = x_t + 1 (mod V). Module: the right token where `agrees(position)`, else the one after it."""

    def __init__(self, agrees: Callable[[int], bool], vocab_size: int = 50, context_length: int = 200) -> None:
        super().__init__()
        self.config = ModelConfig(vocab_size, context_length, num_layers=1, hidden_size=8, num_heads=1)
        self.recycle_config = RecycleConfig(num_layers=1)
        self.lm_head = nn.Linear(1, vocab_size, bias=False)
        self.recyclable = RecyclableModule(self.config, self.recycle_config)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.agrees = agrees
        self.read_shapes: list[tuple[int, ...]] = []

    def backbone_states(self, tokens_BT: Tensor, positions_BT: Tensor, cache: object, num_slots_read: int) -> Tensor:
        self.read_shapes.append(tuple(tokens_BT.shape))
        return F.one_hot((tokens_BT + 1) % self.config.vocab_size, self.config.vocab_size).float()

    def recycle(
        self, tokens_BT: Tensor, hidden_BTC: Tensor, positions_BT: Tensor, cache: object, num_slots_read: int
    ) -> Tensor:
        # The row at position t proposes the token at position t + 2.
        right = torch.tensor([[self.agrees(position + 2) for position in row] for row in positions_BT.tolist()])
        token_BT = torch.where(right, tokens_BT + 1, tokens_BT + 2) % self.config.vocab_size
        return F.one_hot(token_BT, self.config.vocab_size).float()

    draft_ids = None

    def draft_logits(self, state: Tensor) -> Tensor:
        return self.logits(state)

    def logits(self, state: Tensor) -> Tensor:
        return state
