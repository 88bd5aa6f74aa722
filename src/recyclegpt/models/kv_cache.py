"""Memories of attention: the static cache of decoding, and the growing one of unrolled training.

B batch, T new positions, S cache slots, G key/value heads, D head width.
"""

from __future__ import annotations

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
        # A tensor a layer: a compiled pass would copy one tensor of all layers whenever it writes into it.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.rows_B1 = torch.arange(batch, device=device).unsqueeze(1)
        self.slots_S = torch.arange(num_slots, device=device)
        self.positions_BT = self.rows_B1
        self.num_slots_read = num_slots

    @property
    def num_slots(self) -> int:
        """Positions a row can hold."""
        return self.slots_S.numel()

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def seek(self, positions_BT: Tensor, num_slots_read: int | None = None) -> Tensor:
        """Aim the next pass at these positions. Return its mask `(B, 1, T, S)`: a query sees the slots up to its own.

        `num_slots_read` bounds the slots that attention reads; it must exceed every position given.
        """
        self.positions_BT = positions_BT.contiguous()
        self.num_slots_read = self.num_slots if num_slots_read is None else num_slots_read
        return self.slots_S[: self.num_slots_read] <= positions_BT[:, None, :, None]

    def write(self, layer: int, key_BTGD: Tensor, value_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the rows at the positions last sought; return the `num_slots_read` first slots."""
        key_BSGD, value_BSGD = self.keys[layer].transpose(1, 2), self.values[layer].transpose(1, 2)
        key_BSGD[self.rows_B1, self.positions_BT] = key_BTGD.to(key_BSGD.dtype)
        value_BSGD[self.rows_B1, self.positions_BT] = value_BTGD.to(value_BSGD.dtype)
        return key_BSGD[:, : self.num_slots_read], value_BSGD[:, : self.num_slots_read]


class UnrolledKVStore:
    """What step k of unrolled training may look at: the step-1 rows up to its own, and its own earlier steps.

    That is exactly what decoding's cache holds when the k-th token is recycled: true rows for all that the backbone has
    read, provisional rows only for the tokens recycled since.
    """

    def __init__(self) -> None:
        self.key_by_layer: dict[int, list[Tensor]] = {}
        self.value_by_layer: dict[int, list[Tensor]] = {}

    def at(self, step: int) -> UnrolledStep:
        """The memory as step `step` sees it, counted from 1."""
        return UnrolledStep(self, step)

    @staticmethod
    def mask(step: int, first_mask: Tensor) -> Tensor:
        """Mask `(..., T, step * T)` of step `step`, from the mask `(..., T, T)` of the first."""
        own = torch.eye(first_mask.shape[-1], dtype=torch.bool, device=first_mask.device).expand_as(first_mask)
        return torch.cat([first_mask, *[own] * (step - 1)], dim=-1)


class UnrolledStep:
    """One step's view. It may write a layer's rows twice: activation checkpointing runs a layer again when the later
    steps have long written theirs.
    """

    def __init__(self, memory: UnrolledKVStore, step: int) -> None:
        self.memory = memory
        self.step = step

    def write(self, layer: int, key_BTGD: Tensor, value_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep this step's rows; return those of all steps up to it, `(B, k T, G, D)`."""
        keys = self.memory.key_by_layer.setdefault(layer, [])
        values = self.memory.value_by_layer.setdefault(layer, [])
        earlier = self.step - 1
        if len(keys) == earlier:
            keys.append(key_BTGD)
            values.append(value_BTGD)
        return torch.cat([*keys[:earlier], key_BTGD], dim=1), torch.cat([*values[:earlier], value_BTGD], dim=1)
