"""Loop-Residual (arXiv 2409.14199) as a module: one layer, looped n times. C model width."""

from __future__ import annotations

from torch import Tensor, nn

from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.drafts.recyclable import RecyclableModule
from recyclegpt.models.layers import AttentionInputs, run_layers


class Loop(RecyclableModule):
    """`x^(n) = x^(n-1) + f(x^(n-1))`, n = 1..`num_layers`: f is one layer, each turn has keys and values of its own.

    What it is not: the paper loops a whole language model for quality and has no decoder; here the loop makes a deeper
    draft of one layer's weights, which stay in the processor's cache between its turns.
    """

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__(config, recycle)
        self.layers = nn.ModuleList(self.layers[:1])
        self.num_loops = recycle.num_layers

    @property
    def depth(self) -> int:
        """See `DraftModule`."""
        return self.num_loops

    def forward(self, embedded_BTC: Tensor, hidden_BTC: Tensor, attending: AttentionInputs) -> Tensor:
        """See `RecyclableModule`."""
        x_BTC = self.fold(embedded_BTC, hidden_BTC)
        return self.norm(run_layers([*self.layers] * self.num_loops, x_BTC, attending, self.recompute_every))


Module = Loop
