"""SAIC (arXiv 2110.05342), SATIC (arXiv 2106.09436): leaders two ahead, one after another, then all fillers at once."""

from __future__ import annotations

from recyclegpt.errors import ConfigError
from recyclegpt.models.rounds import RoundsModule, Row


class SemiAutoregressive(RoundsModule):
    """Groups of two: the leader x_{t+3} from x_{t+1}, x_{t+5} from that one, ...; a filler reads both its neighbours.

    K tokens take K / 2 + 1 calls. A filler has read the token after the one that it says: so has `val/ppl_recycle`.

    What it is not: SAIC captions images with an encoder-decoder and checks nothing; of it there is the order in a group
    ("predicts the first word in every group in order", then fills all skipped ones). Its repository holds no code.
    """

    def make_plan(self, num: int) -> list[list[Row]]:
        """See `RoundsModule`."""
        if num % 2:
            raise ConfigError(f"num_drafted: {num} is odd, and semi_autoregressive groups are of two tokens")
        leaders = range(2, num + 1, 2)
        return [
            *([Row(place, place - 2)] for place in leaders),
            [Row(place - 1, place - 2, place) for place in leaders],
        ]


Module = SemiAutoregressive
