"""What one training or validation step reads. N views, B batch, T positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Batch(NamedTuple):
    """Rows of tokens seen through shifted windows, and where the stream stands after them."""

    views_NBT: Tensor
    """int64; view n at position t is token t + n of the stream. The packer is the only owner of the shift."""
    documents_NBT: Tensor | None
    """int32, number of the document inside the row that each view's token belongs to (an end token belongs to the
    document it ends); None where documents may attend to each other."""
    state: dict[str, Any]
    """Plain Python or numpy arrays (which are not moved to a device): the stream's position after this batch."""
    rows_B: NDArray[np.int64] | None = None
    """Which rows these are. Of a corpus on disk: their numbers in it, the same in every pass. Of a pure stream: a
    number for each row that was read, never used twice by any worker of any process."""
