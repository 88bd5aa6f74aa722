"""Endless training rows from memory-mapped tokens, with a position that is one number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from recyclegpt.data.packing import Batch, Packing
from recyclegpt.data.shards import TokenShards
from recyclegpt.errors import ConfigError

State = dict[str, Any]


class TokenArray:
    """Tokens in memory, read like shards."""

    def __init__(self, tokens: NDArray[np.int64]) -> None:
        self._tokens = tokens

    @property
    def num_tokens(self) -> int:
        """Its length."""
        return len(self._tokens)

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens start up to stop."""
        return self._tokens[start:stop]


Tokens = TokenShards | TokenArray


class PackedRows(IterableDataset[Batch]):
    """Rows in a seeded random order, a new one each pass over the corpus.

    The rows of all passes form one endless sequence. Batch j of rank r out of W takes its rows (j*W + r)*B up to
    (j*W + r + 1)*B, and worker w out of n makes batches w, w + n, ...: every row is used once a pass, and the order is
    the same for any number of workers. Resuming costs O(1), since the state is the number of the next batch.

    Args:
        num_batches: repeat the first n batches for ever; 0: no batch comes again before its pass has ended.

    Raises:
        ConfigError: the tokens do not fill one row.
    """

    def __init__(
        self,
        tokens: Tokens,
        packing: Packing,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_batches: int = 0,
    ) -> None:
        super().__init__()
        self._num_batches = num_batches
        self._tokens = tokens
        self._packing = packing
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._first_batch = 0
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._num_rows = packing.num_rows(tokens.num_tokens)
        if self._num_rows == 0:
            raise ConfigError(
                f"data: {tokens.num_tokens} training tokens do not fill one row of {packing.window}; "
                "give more text or shorten the row (model.context_length)"
            )

    def resume(self, state: State | None) -> None:
        """Start from `state` (of `merge`) at the next iteration; None: from the beginning."""
        self._first_batch = 0 if state is None else int(state["batch"])

    def merge(self, state: State | None, batch_state: State) -> State:
        """The whole state of the rank once a batch has been trained on: here the batch's own."""
        return batch_state

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number = self._first_batch + first
        while True:
            yield self.batch(number)
            number += step

    def rows(self, number: int) -> list[int]:
        """Which rows of the corpus batch `number` of this rank holds."""
        number = number % self._num_batches if self._num_batches else number
        start = (number * self._world_size + self._rank) * self._batch_size
        places = (divmod(place, self._num_rows) for place in range(start, start + self._batch_size))
        return [int(self._order(turn)[index]) for turn, index in places]

    def batch(self, number: int) -> Batch:
        """Batch `number` of this rank, counted from 0."""
        rows = self.rows(number)
        views, documents = self._packing.views(read_windows(self._tokens, self._packing, rows))
        return Batch(views, documents, {"batch": number + 1}, np.array(rows))

    def _order(self, turn: int) -> NDArray[np.int64]:
        if turn not in self._orders:
            # A batch spans at most two passes if the corpus is larger than a batch.
            self._orders = {old: order for old, order in self._orders.items() if old == turn - 1}
            self._orders[turn] = np.random.default_rng((self._seed, turn)).permutation(self._num_rows)
        return self._orders[turn]


def read_windows(tokens: Tokens, packing: Packing, rows: list[int]) -> NDArray[np.int64]:
    """Windows (B, T + N - 1) of the given rows."""
    starts = (row * packing.row_length for row in rows)
    return np.stack([tokens.read(start, start + packing.window) for start in starts])
