"""The recyclable module: predicts one token further from a state already computed and the token that followed it.

B batch, T positions, C model width, D draft vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import DraftModule, Rows
from recyclegpt.models.layers import AttentionInputs, RMSNorm, TransformerLayer, run_layers
from recyclegpt.models.unrolled import UnrolledKVStore


class RecyclableModule(DraftModule):
    """`z_t = W_fold [E(x_{t+1}) ; h_t]`, then d transformer layers over z_1..z_t, then a norm: `r_t`.

    The paper (arXiv 2308.03421) names the inputs and the LLaMA layers; the order of the two halves, the bias-free fold
    and the norms are this project's choice, made so that vLLM's `EagleMistralForCausalLM` computes the same.
    """

    one_call = False

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__(config, recycle)
        width, eps = config.hidden_size, config.norm_eps
        self.embed_norm: nn.Module = RMSNorm(width, eps=eps) if recycle.norm_inputs else nn.Identity()
        self.hidden_norm: nn.Module = RMSNorm(width, eps=eps) if recycle.norm_inputs else nn.Identity()
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.layers = nn.ModuleList(
            TransformerLayer(config.plain, input_norm=number > 0 or recycle.first_input_norm)
            for number in range(recycle.num_layers)
        )
        self.norm: nn.Module = RMSNorm(width, eps=eps) if recycle.final_norm else nn.Identity()

    def balance(self, embedding_std: float) -> None:
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

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """See `DraftModule`; from the second step on it reads its own state instead of the backbone's."""
        states: list[Tensor] = []
        stores: list[UnrolledKVStore] = []
        for step in range(1, num_steps + 1):
            if num_steps > 1:
                stores.append(UnrolledKVStore(stores))
            inputs = self.inputs(rows, step, states[-1] if states else rows.hidden_BTC)
            states.append(self(*inputs, rows.attending(step, stores[-1] if stores else None)))
        return states

    def inputs(self, rows: Rows, step: int, state_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """What the rows of a step fold, given the state of the step before: token embeddings and states."""
        return rows.embedded(step), state_BTC

    def fold(self, embedded_BTC: Tensor, hidden_BTC: Tensor) -> Tensor:
        """What the layers read, z_t `(B, T, C)`."""
        return self.fc(self.fold_inputs(embedded_BTC, hidden_BTC))

    def fold_inputs(self, embedded_BTC: Tensor, hidden_BTC: Tensor) -> Tensor:
        """Both inputs next to each other, `(B, T, 2C)`."""
        return torch.cat([self.embed_norm(embedded_BTC), self.hidden_norm(hidden_BTC)], dim=-1)


Module = RecyclableModule
