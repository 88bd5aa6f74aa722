"""The backbone itself as a drafter, with parts of its layers skipped: self-speculative decoding and early exit.

`self_speculative` skips attention or SwiGLU of chosen layers (Draft & Verify: Zhang et al., arXiv 2309.08168); it needs
no training. `experiments/006_neighbours/search_skip_set.py` chooses them, greedily by weights read and tokens accepted,
where theirs is Bayesian optimisation of the measured speed; their threshold also adapts itself, and the published
speedups are of 13 billion parameters and more.

`early_exit` runs the first layers, the final norm and the LM head (LayerSkip: Elhoushi et al., arXiv 2404.16710). It is
for a backbone trained for it (`loss.layer_dropout`, `loss.early_exit_weight`), thus for a *different* backbone. Their
verification runs the remaining layers alone; here the backbone pass reads the block as it does for every drafter.

Both read and write the backbone's own KV cache. Rows that they write are of drafted tokens only, and the backbone pass
that verifies those writes all of their rows anew. B batch, T positions, C model width.
"""

from __future__ import annotations

from torch import Tensor

from recyclegpt.decoding.drafters.chain import BackbonePass, ChainDrafter
from recyclegpt.decoding.sampling import Sampler
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.decoding.text_buffer import TextBuffer
from recyclegpt.errors import ConfigError
from recyclegpt.models import KVCache, RecycleGPT


def skipped_parts(drafter: str, num_layers: int) -> frozenset[str]:
    """What a `drafter` skips: `a3` is the attention of the fourth layer, `m3` its SwiGLU.

    Without an argument that is every second layer, and every layer after the first quarter.

    Raises:
        ConfigError: the backbone has fewer layers.
    """
    name, _, argument = drafter.partition(":")
    parts = frozenset(f"{kind}{layer}" for layer in range(num_layers) for kind in "am")
    if name == "early_exit":
        exit_layer = int(argument or max(1, num_layers // 4))
        skipped = frozenset(part for part in parts if int(part[1:]) >= exit_layer)
        fits = exit_layer < num_layers
    else:
        given = argument.split(".") if argument else [part for part in parts if int(part[1:]) % 2]
        skipped = frozenset(given)
        fits = skipped <= parts
    if not fits:
        raise ConfigError(f"decoding.drafter: {drafter}, but the layers of the backbone are 0 to {num_layers - 1}")
    return skipped


class PartialBackboneDrafter(ChainDrafter):
    """Implements `Drafter`. Every drafted token costs one pass of what is left of the backbone."""

    def __init__(
        self, model: RecycleGPT, strategy: Strategy, sampler: Sampler, text: TextBuffer, backbone_cache: KVCache
    ) -> None:
        """Allocate. `backbone_cache` is that of the backbone's passes."""
        super().__init__(model, strategy, sampler, text)
        self.backbone_cache = backbone_cache
        self.skipped = skipped_parts(strategy.drafter, model.config.num_layers)

    def draft(self, made: BackbonePass) -> None:
        """Read the newest token, which the backbone has not read yet, then draft."""
        newest_token_B = self.text.tokens_BS.gather(1, self.text.position_B[:, None])[:, 0]
        state_BC = self.following(made.hidden_BTC[:, 0], newest_token_B, 0, made.num_slots_read)
        self.propose(state_BC, made.num_slots_read)

    def following(self, state_BC: Tensor, token_B: Tensor, number: int, num_slots_read: int) -> Tensor:
        """See `ChainDrafter`; the text says all, so `state_BC` is not read."""
        positions_B1 = (self.text.position_B + number)[:, None]
        return self.model.partial_states(
            token_B[:, None], positions_B1, self.skipped, self.backbone_cache, num_slots_read
        )[:, 0]
