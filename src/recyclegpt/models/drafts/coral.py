"""COrAL's forward window (arXiv 2410.09675): the same layers asked for several target positions at once.

B batch, T positions, C model width, R rows of a call, m drafted tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recyclegpt.models.draft_module import Attend, Rows, rows_at, rows_of_call
from recyclegpt.models.drafts.recyclable import RecyclableModule
from recyclegpt.models.unrolled import UnrolledKVStore


class Coral(RecyclableModule):
    """The recyclable module, asked again for each target: query row k is z_t itself, rotated as at position t + k - 1.

    Keys and values are those of the true pairs 1..t alone: query rows see neither each other nor themselves, so that a
    target is known by its position only (github.com/YuxiXie/COrAL, `oa_model/llama/modeling_llama.py`: queries rotated
    at `position_ids_to_predict`, keys at their own, the residual stream repeated for each target).

    What it is not: COrAL asks the model's own last layer and trains it along; here the layers are the module's. Its
    backward window and sliding refinement, which change tokens already written, are left out, being lossy.
    """

    one_call = True

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """See `DraftModule`."""
        pairs = UnrolledKVStore()
        inputs = rows.embedded(1), rows.hidden_BTC
        first_BTC = self(*inputs, rows.attending(1, pairs))
        later = (replace(rows.attending(step, _Pairs(pairs)), mask=rows.mask) for step in range(2, num_steps + 1))
        return [first_BTC, *(self(*inputs, attending) for attending in later)]

    def draft(
        self, embedded_BTC: Tensor, hidden_BTC: Tensor, positions_BT: Tensor, newest_B: Tensor, num: int, attend: Attend
    ) -> Tensor:
        """See `DraftModule`."""
        positions_BR, pair_BR, _ = rows_of_call(positions_BT, newest_B, num)
        embedded_BRC, hidden_BRC = rows_at(embedded_BTC, pair_BR), rows_at(hidden_BTC, pair_BR)
        states_BRC = self(embedded_BRC, hidden_BRC, attend(positions_BR, positions_BT.gather(1, pair_BR)))
        return rows_at(states_BRC, newest_B[:, None] + torch.arange(num, device=newest_B.device))


class _Pairs:
    """Keys and values of the true pairs, whatever is written."""

    def __init__(self, pairs: UnrolledKVStore) -> None:
        self.pairs = pairs

    def write(self, layer: int, key_BTGD: Tensor, value_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        return self.pairs.rows[layer]


Module = Coral
