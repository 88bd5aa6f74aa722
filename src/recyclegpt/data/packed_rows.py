"""Rows of T positions cut from a stream of tokens, the shifted views that models train on, and their endless order.

The packer is the only owner of the shift: models and losses never roll a tensor. N views, B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from recyclegpt.data.shards import TokenShards
from recyclegpt.errors import ConfigError


class Batch(NamedTuple):
    """Rows of tokens as shifted views, and the stream's position after them."""

    views_NBT: Tensor
    """int64; view n at position t is token t + n of the stream."""
    documents_NBT: Tensor | None
    """int32, which document of the row each view's token belongs to (an end token to the document it ends); None where
    documents may attend to each other."""
    state: dict[str, Any]
    """Plain Python or numpy arrays, which nothing pins or moves to a device: the stream's position after this batch."""
    rows_B: NDArray[np.int64] | None = None
    """Which rows these are. Of a corpus on disk: their numbers in it, the same in every pass. Of a stream: a number for
    each row that was read, unique among all workers of all processes."""


@dataclass(frozen=True)
class Packing:
    """How tokens become rows: row i reads tokens i*T up to i*T + T + N - 1.

    So each token is the backbone's target once. The last tokens, which do not fill a row, are dropped.

    Raises:
        ConfigError: rows have no positions.
    """

    row_length: int
    """T, positions of a row."""
    num_views: int
    """N: view 0 is the input, view 1 the backbone's target, view 1 + k the target of the module's unrolled step k."""
    mask_documents: bool = False
    """Number the documents of each row, so that attention can stay inside them."""
    eos_id: int = 0
    """The token that ends a document."""
    inner_ids: Sequence[int] = ()
    """Where one of these follows it, it ends a turn of a conversation, which is one document."""

    def __post_init__(self) -> None:
        if self.row_length < 1:
            raise ConfigError(f"row_length: {self.row_length} is not a positive number")

    @property
    def window(self) -> int:
        """Tokens read for one row, T + N - 1."""
        return self.row_length + self.num_views - 1

    def num_rows(self, num_tokens: int) -> int:
        """Full rows that `num_tokens` tokens make."""
        return max(0, (num_tokens - self.num_views + 1) // self.row_length)

    def views(self, windows_BW: NDArray[np.integer]) -> tuple[Tensor, Tensor | None]:
        """Shifted views of windows (B, T + N - 1).

        Returns:
            Tokens (N, B, T) int64 and, where documents are masked, document numbers (N, B, T) int32.
        """
        documents = None
        if self.mask_documents:
            ends_BW = windows_BW == self.eos_id
            ends_BW[:, :-1] &= ~np.isin(windows_BW[:, 1:], self.inner_ids)
            # An end token belongs to the document it ends, so the count goes up after it.
            documents = self._shift((np.cumsum(ends_BW, axis=1) - ends_BW).astype(np.int32))
        return self._shift(windows_BW.astype(np.int64)), documents

    def _shift(self, windows_BW: NDArray[np.integer]) -> Tensor:
        shifted = [windows_BW[:, n : n + self.row_length] for n in range(self.num_views)]
        return torch.from_numpy(np.stack(shifted))


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
            short = f"{tokens.num_tokens} training tokens do not fill one row of {packing.window}"
            raise ConfigError(f"data: {short}; give more text or shorten the row (model.context_length)")

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
