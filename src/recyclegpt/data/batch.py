"""What one training or validation step reads. N views, B batch, T positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Batch(NamedTuple):
    """Rows of tokens as shifted views, and the stream's position after them."""

    views_NBT: Tensor
    """int64; view n at position t is token t + n of the stream. The packer is the only owner of the shift."""
    documents_NBT: Tensor | None
    """int32, which document of the row each view's token belongs to (an end token to the document it ends); None where
    documents may attend to each other."""
    state: dict[str, Any]
    """Plain Python or numpy arrays (which are not moved to a device): the stream's position after this batch."""
    rows_B: NDArray[np.int64] | None = None
    """Which rows these are. Of a corpus on disk: their numbers in it, the same in every pass. Of a stream: a number for
    each row that was read, unique among all workers of all processes."""

    def pin_memory(self) -> Batch:
        """The batch with its tokens in page-locked memory; called by `DataLoader`. The state, which may hold a whole
        shuffle buffer, is left alone.
        """
        return self._on_tokens(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tokens on a device; called by Lightning. CUDA copies page-locked memory while it computes,
        and the host does not wait.
        """
        return self._on_tokens(lambda tokens: tokens.to(device, non_blocking=device.type == "cuda"))

    def _on_tokens(self, function: Callable[[Tensor], Tensor]) -> Batch:
        views_NBT = function(self.views_NBT)
        documents_NBT = None if self.documents_NBT is None else function(self.documents_NBT)
        return self._replace(views_NBT=views_NBT, documents_NBT=documents_NBT)
