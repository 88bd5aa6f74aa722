"""Modules that draft a block in rounds: the rows of one call are asked together, those of the next know their tokens.

B batch, T positions, C model width, K = `num_drafted` tokens of a block, R rows of a call, Q rows of a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.draft_module import Attend, Rows, rows_at, rows_of_call
from recyclegpt.models.drafts.recyclable import RecyclableModule
from recyclegpt.models.layers import AttentionInputs, run_layers
from recyclegpt.models.unrolled import UnrolledKVStore

Choose = Callable[[int, Tensor], Tensor]
"""Chooses the token at a place from its state `(B, C)`; returns its embedding `(B, C)`."""


class Row(NamedTuple):
    """A row that drafts the token at `place` 1..K of a block; place 0 is the newest token, x_{t+1}."""

    place: int
    left: int | None
    """Place of the token that it reads; None: of none."""
    right: int | None = None
    """Place of another."""


class RoundsModule(RecyclableModule):
    """`z = W_fold [E(left) ; h_t] + W_right E(right) + e_n` for the n-th row of the plan, then layers and norm.

    The rows stand behind the true pairs, one after another, and see those and all rows before their own.
    """

    one_call = True

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        super().__init__(config, recycle)
        self.spare_rows = recycle.num_drafted or 0
        self.plan = self.make_plan(self.spare_rows)
        self.row_embed = nn.Embedding(self.spare_rows, config.hidden_size)
        self.right: nn.Module | None = None
        if any(row.right is not None for rows in self.plan for row in rows):
            self.right = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def make_plan(self, num: int) -> list[list[Row]]:
        """The rows of each round, for blocks of `num` tokens.

        Raises:
            ConfigError: `num` does not fit.
        """
        raise NotImplementedError

    def num_calls(self, num: int) -> int:
        """See `DraftModule`; a block is drafted whole."""
        return len(self.plan)

    def balance(self, embedding_std: float) -> None:
        """As the recyclable module; each other input begins with half the variance of the folded ones."""
        super().balance(embedding_std)
        nn.init.normal_(self.row_embed.weight, std=0.5**0.5)
        if isinstance(self.right, nn.Linear):
            nn.init.normal_(self.right.weight, std=1 / (math.sqrt(2 * self.right.in_features) * embedding_std))

    def states(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """See `DraftModule`.

        Raises:
            ConfigError: a row reads a token that the views do not reach.
        """
        plan = [row for rows_of_round in self.plan for row in rows_of_round]
        while plan[-1].place > num_steps:
            plan.pop()
        furthest = 1 + max(place for row in plan for place in row[1:] if place is not None)
        if furthest >= len(rows.views_NBT):
            raise ConfigError(
                f"recycle.kind: its rows read {furthest} tokens ahead, {len(rows.views_NBT) - 1} are given"
            )
        stores = [UnrolledKVStore()]
        self(rows.embedded(1), rows.hidden_BTC, rows.attending(1, stores[0]))
        states: dict[int, Tensor] = {}
        for number, row in enumerate(plan):
            stores.append(UnrolledKVStore(stores))
            left, right = (None if place is None else rows.embedded(1 + place) for place in row[1:])
            z_BTC = self._row(number, left, right, rows.hidden_BTC)
            states[row.place] = self._run(z_BTC, rows.attending(number + 2, stores[-1]))
        return [states[place] for place in range(1, num_steps + 1)]

    def draft_in_rounds(
        self,
        embedded_BTC: Tensor,
        hidden_BTC: Tensor,
        positions_BT: Tensor,
        newest_B: Tensor,
        attend: Attend,
        choose: Choose,
    ) -> None:
        """As `draft`, a call a round: each token of the block is given to `choose` once, in the order of the plan."""
        newest_B1 = newest_B[:, None]
        hidden_BC = rows_at(hidden_BTC, newest_B1)[:, 0]
        known: dict[int | None, Tensor] = {0: rows_at(embedded_BTC, newest_B1)[:, 0]}
        number, first = 0, positions_BT.gather(1, newest_B1) + 1
        for rows in self.plan:
            read = [
                self._row(number + n, known.get(row.left), known.get(row.right), hidden_BC)
                for n, row in enumerate(rows)
            ]
            z_BQC, row_Q = torch.stack(read, dim=1), torch.arange(len(rows), device=newest_B.device)
            if number:
                states_BQC = self._run(z_BQC, attend(first + number + row_Q))
            else:
                positions_BR, pair_BR, ahead_BR = rows_of_call(positions_BT, newest_B, len(rows) + 1)
                pairs_BRC = self.fold(rows_at(embedded_BTC, pair_BR), rows_at(hidden_BTC, pair_BR))
                asked_BRC = rows_at(z_BQC, (ahead_BR - 1).clamp(0, len(rows) - 1))
                z_BRC = torch.where(ahead_BR[..., None] > 0, asked_BRC, pairs_BRC)
                states_BQC = rows_at(self._run(z_BRC, attend(positions_BR)), newest_B1 + 1 + row_Q)
            number += len(rows)
            for row, state_BC in zip(rows, states_BQC.unbind(1), strict=True):
                known[row.place] = choose(row.place, state_BC)

    def _row(self, number: int, left: Tensor | None, right: Tensor | None, hidden: Tensor) -> Tensor:
        z = self.fold(torch.zeros_like(hidden) if left is None else left, hidden) + self.row_embed.weight[number]
        return z if right is None or self.right is None else z + self.right(right)

    def _run(self, z_BTC: Tensor, attending: AttentionInputs) -> Tensor:
        state_BTC: Tensor = self.norm(run_layers(self.layers, z_BTC, attending, self.recompute_every))
        return state_BTC
