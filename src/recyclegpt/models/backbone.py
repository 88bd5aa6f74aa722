"""The decoder-only transformer whose states are recycled. B batch, T positions, C model width, V vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from recyclegpt.models.config import ModelConfig
from recyclegpt.models.layers import Attending, RMSNorm, TransformerLayer


class Backbone(nn.Module):
    """Token embedding, layers and final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, tokens_BT: Tensor, attending: Attending) -> Tensor:
        """Return `hidden_BTC`, the state h_t after the final norm."""
        x_BTC = self.embed_tokens(tokens_BT)
        for number, layer in enumerate(self.layers):
            x_BTC = layer(x_BTC, number, attending)
        return self.norm(x_BTC)
