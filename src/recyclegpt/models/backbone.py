"""The decoder-only transformer whose states are recycled. B batch, T positions, C model width."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import cast

import torch
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

    def exit_states(
        self, tokens_BT: Tensor, attending: AttentionInputs, num_layers: int, dropped_LB: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The states `(B, T, C)` where row b leaves layer l out if `dropped_LB[l, b]`, and those after `num_layers`."""
        x_BTC = exit_BTC = self.embed_tokens(tokens_BT)
        for number, layer in enumerate(self.layers):
            recompute = int(self.recompute_every > 0 and number % self.recompute_every == 0)
            through_BTC = run_layers([layer], x_BTC, attending, recompute)
            x_BTC = torch.where(dropped_LB[number][:, None, None], x_BTC, through_BTC)
            if number + 1 == num_layers:
                exit_BTC = x_BTC
        return self.norm(x_BTC), self.norm(exit_BTC)

    def partial(self, tokens_BT: Tensor, attending: AttentionInputs, skipped: Container[str]) -> Tensor:
        """States after the norm without the `skipped` parts: `a3` is the fourth layer's attention, `m3` its MLP."""
        x_BTC = self.embed_tokens(tokens_BT)
        for number, layer in enumerate(cast("Iterable[TransformerLayer]", self.layers)):
            if f"a{number}" not in skipped:
                x_BTC = layer.add_attention(x_BTC, number, attending)
            if f"m{number}" not in skipped:
                x_BTC = layer.add_mlp(x_BTC)
        return self.norm(x_BTC)
