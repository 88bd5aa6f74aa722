"""What one training or validation step reads. N views, B batch, T positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
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
    """Plain Python or numpy arrays, which nothing pins or moves to a device: the stream's position after this batch."""
    rows_B: NDArray[np.int64] | None = None
    """Which rows these are. Of a corpus on disk: their numbers in it, the same in every pass. Of a stream: a number for
    each row that was read, unique among all workers of all processes."""
