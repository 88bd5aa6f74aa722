"""The static KV cache of decoding.

B batch, T new positions, S cache slots, G key/value heads, D head width.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from recyclegpt.models.config import ModelConfig


class KVCache:
    """Keys and values of every layer in tensors allocated once. Slot s of a row holds the token at position s.

    Because a slot is its position, rows of a batch may stand at different lengths, and rolling back costs nothing: the
    slots of rejected tokens lie beyond every later query's position until they are overwritten.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_layers: int,
        batch: int,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        # Heads before slots: a query runs through the slots of one head, one after another in memory.
        shape = (batch, config.num_kv_heads, num_slots, config.head_dim)
        # One tensor per layer: a compiled pass would copy a tensor of all layers whenever it writes into it.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.rows_B1 = torch.arange(batch, device=device).unsqueeze(1)
        self.slots_S = torch.arange(num_slots, device=device)
        self.positions_BT = self.rows_B1
        self.num_slots_read = num_slots

    @functools.cached_property
    def addresses(self) -> Tensor:
        """Of each layer's keys and values, `(L, 2)`, for an operator that runs through all layers."""
        return torch.tensor(
            [[key.data_ptr(), value.data_ptr()] for key, value in zip(self.keys, self.values, strict=True)]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "addresses"}  # a copy has its own

    def set_positions(self, positions_BT: Tensor, num_slots_read: int | None = None) -> Tensor:
        """Set where the next pass writes. Return its mask `(B, 1, T, S)`: a query sees the slots up to its own.

        `num_slots_read` bounds the slots that attention reads; it must exceed every position given.
        """
        self.positions_BT = positions_BT.contiguous()
        self.num_slots_read = self.slots_S.numel() if num_slots_read is None else num_slots_read
        return self.slots_S[: self.num_slots_read] <= positions_BT[:, None, :, None]

    def write(self, layer: int, key_BTGD: Tensor, value_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the rows at the positions last set; return the first `num_slots_read` slots."""
        key_BSGD, value_BSGD = self.keys[layer].transpose(1, 2), self.values[layer].transpose(1, 2)
        key_BSGD[self.rows_B1, self.positions_BT] = key_BTGD.to(key_BSGD.dtype)
        value_BSGD[self.rows_B1, self.positions_BT] = value_BTGD.to(value_BSGD.dtype)
        return key_BSGD[:, : self.num_slots_read], value_BSGD[:, : self.num_slots_read]
