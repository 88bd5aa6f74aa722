"""Hidden Transfer (arXiv 2404.12022) and FIRP (arXiv 2410.20488): pseudo states through the backbone's upper layers.

B batch, T positions, C model width, K steps, L backbone layers, m drafted tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recyclegpt.errors import ConfigError
from recyclegpt.models.backbone import Backbone
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import Attend, DraftModule, Rows
from recyclegpt.models.layers import AttentionInputs, run_layers
from recyclegpt.models.unrolled import UnrolledKVStore


class HiddenTransfer(DraftModule):
    """`h~_{t+k} = W_k h_t` at the input of layer `from_layer`; then the backbone's own layers from there on, and norm.

    Pseudo row k stands at position t + k and sees the true rows up to t and the pseudo rows before it, through the
    backbone's KV cache. W_k begins as the identity. The papers' loss is `loss.target=distill`, on a frozen backbone.

    What it is not: in the papers pseudo rows of every position ride along in the backbone's own pass; here those of the
    newest one are a call of m rows after it. The drafts are the same, and the call has its price. No code was found:
    the layer and the identity are this project's choice.
    """

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__(config, recycle)
        self.tap = config.num_layers // 2 if recycle.from_layer is None else recycle.from_layer
        if not 0 <= self.tap < config.num_layers:
            raise ConfigError(f"from_layer: {self.tap}, but the backbone has layers 0 to {config.num_layers - 1}")
        self.layers = nn.ModuleList()
        width = config.hidden_size
        self.transfers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(recycle.num_drafted or 0))

    def attach(self, backbone: Backbone) -> None:
        """See `DraftModule`."""
        self.__dict__["backbone"] = backbone  # not registered: its weights are the backbone's

    backbone: Backbone

    def balance(self, embedding_std: float) -> None:
        """Let every pseudo state begin as the state it is made of."""
        for transfer in self.transfers:
            nn.init.eye_(transfer.weight)  # type: ignore[arg-type]

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """See `DraftModule`."""
        states, stores = [], [rows.store]
        for step in range(1, num_steps + 1):
            stores.append(UnrolledKVStore(stores))
            x_BTC = self.transfers[step - 1](rows.hidden_BTC)
            states.append(self._upper(x_BTC, rows.attending(step + 1, stores[-1])))
        return states

    def draft(
        self, embedded_BTC: Tensor, hidden_BTC: Tensor, positions_BT: Tensor, newest_B: Tensor, num: int, attend: Attend
    ) -> Tensor:
        """See `DraftModule`; `hidden_BTC` is what the layer `from_layer` read, `attend` the backbone's cache."""
        row_B = torch.arange(len(newest_B), device=newest_B.device)
        hidden_BC, position_B = hidden_BTC[row_B, newest_B], positions_BT[row_B, newest_B]
        x_BmC = torch.stack([transfer(hidden_BC) for transfer in self.transfers[:num]], dim=1)
        return self._upper(x_BmC, attend(position_B[:, None] + torch.arange(1, num + 1, device=newest_B.device)))

    def _upper(self, x_BTC: Tensor, attending: AttentionInputs) -> Tensor:
        tap, every = self.tap or 0, self.recompute_every
        return self.backbone.norm(run_layers(list(self.backbone.layers)[tap:], x_BTC, attending, every, tap))


Module = HiddenTransfer
