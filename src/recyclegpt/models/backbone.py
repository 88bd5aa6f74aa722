"""The decoder-only transformer whose states are recycled. B batch, T positions, C model width."""

from __future__ import annotations

from torch import Tensor, nn

from recyclegpt.models.config import ModelConfig
from recyclegpt.models.layers import AttentionInputs, RMSNorm, TransformerLayer, run_layers


class Backbone(nn.Module):
    """Token embedding, layers and final norm."""

    recompute_every = 0
    """In training, every n-th layer is recomputed in the backward pass instead of kept in memory; 0: none."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, tokens_BT: Tensor, attending: AttentionInputs) -> Tensor:
        """The states h_t after the final norm, `hidden_BTC`."""
        x_BTC = run_layers(self.layers, self.embed_tokens(tokens_BT), attending, self.recompute_every)
        return self.norm(x_BTC)

    def tapped(self, tokens_BT: Tensor, attending: AttentionInputs, tap: int) -> tuple[Tensor, Tensor]:
        """The same, and what layer number `tap` reads."""
        layers, every = list(self.layers), self.recompute_every
        x_BTC = run_layers(layers[:tap], self.embed_tokens(tokens_BT), attending, every)
        return self.norm(run_layers(layers[tap:], x_BTC, attending, every, tap)), x_BTC
