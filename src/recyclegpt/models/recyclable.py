"""The recyclable module: predicts one token further from a state already computed and the token that followed it.

B batch, T positions, C model width, D draft vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.layers import AttentionInputs, RMSNorm, TransformerLayer, run_layers


class RecyclableModule(nn.Module):
    """`z_t = W_fold [E(x_{t+1}) ; h_t]`, then d transformer layers over z_1..z_t, then a norm: `r_t`.

    The paper (arXiv 2308.03421) names the inputs and the LLaMA layers; the order of the two halves, the bias-free fold
    and the norms are this project's choice, made so that vLLM's `EagleMistralForCausalLM` computes the same.
    """

    recompute_every = 0
    """See `Backbone.recompute_every`."""

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.embed_norm: nn.Module = RMSNorm(width, eps=eps) if recycle.norm_inputs else nn.Identity()
        self.hidden_norm: nn.Module = RMSNorm(width, eps=eps) if recycle.norm_inputs else nn.Identity()
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.layers = nn.ModuleList(
            TransformerLayer(config.plain, input_norm=number > 0 or recycle.first_input_norm)
            for number in range(recycle.num_layers)
        )
        self.norm: nn.Module = RMSNorm(width, eps=eps) if recycle.final_norm else nn.Identity()
        if recycle.draft_vocab is not None and recycle.draft_vocab > config.vocab_size:
            raise ConfigError(f"draft_vocab: {recycle.draft_vocab} is more than vocab_size={config.vocab_size}")
        # Low ids until the frequent ones are known: the earliest merges of a byte-pair vocabulary are common.
        self.register_buffer("draft_ids", None if recycle.draft_vocab is None else torch.arange(recycle.draft_vocab))

    draft_ids: Tensor | None
    """The token ids that the module may propose, ascending `(D,)`; None: all."""

    def balance_fold(self, embedding_std: float) -> None:
        """Initialise the fold so that both inputs add equal variance to z_t, which starts with unit variance.

        A state after its norm has unit scale, an embedding that of its initialisation. With equal weights the state
        would drown out the token.
        """
        width = self.fc.out_features
        normed = isinstance(self.embed_norm, RMSNorm)
        with torch.no_grad():
            nn.init.normal_(
                self.fc.weight[:, :width], std=1 / (math.sqrt(2 * width) * (1.0 if normed else embedding_std))
            )
            nn.init.normal_(self.fc.weight[:, width:], std=1 / math.sqrt(2 * width))

    def forward(self, embedded_BTC: Tensor, hidden_BTC: Tensor, attending: AttentionInputs) -> Tensor:
        """The states `recycled_BTC`: r_t from `embedded_BTC[:, t]` = E(x_{t+1}) and `hidden_BTC[:, t]` = h_t."""
        x_BTC = self.fold(embedded_BTC, hidden_BTC)
        return self.norm(run_layers(self.layers, x_BTC, attending, self.recompute_every))

    def fold(self, embedded_BTC: Tensor, hidden_BTC: Tensor) -> Tensor:
        """What the layers read, z_t `(B, T, C)`."""
        return self.fc(torch.cat([self.embed_norm(embedded_BTC), self.hidden_norm(hidden_BTC)], dim=-1))
