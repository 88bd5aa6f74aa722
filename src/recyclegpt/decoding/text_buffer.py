"""The text of a batch on the device: token ids at their positions, allocated once and changed in place.

B batch, T positions of a pass, S slots, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


class TextBuffer:
    """Prompts and what follows them. Slot s of a row holds the token at position s."""

    def __init__(self, batch: int, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self.tokens_BS = torch.zeros(batch, num_slots, dtype=torch.long, device=device)
        self.position_B = torch.zeros(batch, dtype=torch.long, device=device)
        """Where the backbone's newest token stands; drafted tokens follow it."""
        self.limit_B = torch.zeros_like(self.position_B)
        """`position_B` never passes it: a row that has ended stays there."""

    def write(self, positions_B: Tensor, token_B: Tensor) -> None:
        """Put one token into each row."""
        self.tokens_BS.scatter_(1, positions_B[:, None], token_B[:, None])

    def seen(self, positions_BT: Tensor) -> Tensor:
        """Which token ids stand at or before each position, `(B, T, V)`, for the repetition penalty."""
        slots_S = torch.arange(self.tokens_BS.shape[1], device=self.device)
        later_BTS = slots_S > positions_BT[:, :, None]
        # Later tokens are counted as one beyond the vocabulary, which is cut off again.
        index_BTS = self.tokens_BS[:, None].expand_as(later_BTS).masked_fill(later_BTS, self.vocab_size)
        seen_BTV = torch.zeros(*positions_BT.shape, self.vocab_size + 1, dtype=torch.bool, device=self.device)
        return seen_BTV.scatter_(2, index_BTS, True)[..., :-1]


def row_at(values_BTX: Tensor, index_B: Tensor) -> Tensor:
    """Row `index_B[b]` of each batch entry, `(B, X)`."""
    return values_BTX.gather(1, index_B[:, None, None].expand(-1, 1, values_BTX.shape[-1])).squeeze(1)
