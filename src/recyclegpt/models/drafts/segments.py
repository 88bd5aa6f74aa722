"""RecoverSAT (arXiv 2006.05165): cursors that draft the segments of a block together, one token each a call."""

from __future__ import annotations

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.rounds import RoundsModule, Row


class Segments(RoundsModule):
    """A block is `num_segments` segments of equal length; in each call every segment gains its next token.

    A row sees the earlier tokens of all segments; an embedding for each row says which segment it is and how far
    (github.com/ranqiu92/RecoverSAT, `recoversat.py`: `segment_mask`, `seg_embedding`).

    What it is not: without a source sentence the later segments begin blind; segments of fixed length need no end, and
    none is deleted, since verification does that.
    """

    def __init__(self, config: ModelConfig, recycle: RecycleConfig) -> None:
        self.num_segments = recycle.num_segments
        super().__init__(config, recycle)

    def make_plan(self, num: int) -> list[list[Row]]:
        """See `RoundsModule`."""
        length, rest = divmod(num, self.num_segments)
        if rest:
            raise ConfigError(f"num_drafted: {num} tokens are not {self.num_segments} segments of equal length")
        begins = range(0, num, length)
        return [
            [Row(begin + step, begin + step - 1 if step > 1 or not begin else None) for begin in begins]
            for step in range(1, length + 1)
        ]


Module = Segments
