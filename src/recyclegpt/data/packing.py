"""Rows of T positions cut from a stream of tokens, and the shifted views that models train on.

The packer is the only owner of the shift: models and losses never roll a tensor. N views, B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
