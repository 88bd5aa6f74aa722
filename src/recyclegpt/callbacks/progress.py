"""A progress bar for steps of any length."""

from __future__ import annotations

import math
import sys
import time

from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's, redrawn after the first batch, the last, and then by time rather than by number of batches.

    So a slow run shows its pace after one batch, and a fast one does not spend its time on drawing.

    Args:
        interval_s: seconds between two drawings; outside a terminal, where each is a line of a log, thirty times more.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        super().__init__()
        self._interval_s = interval_s if sys.stderr.isatty() else 30 * interval_s
        self._drawn = -math.inf

    def _should_update(self, current: int, total: int) -> bool:
        now = time.monotonic()
        if not self.is_enabled or (current not in (1, total) and now - self._drawn < self._interval_s):
            return False
        self._drawn = now
        return True

    @property
    def total_train_batches(self) -> int | float:
        """Of the epoch that begins; fewer where `max_steps` ends the run within it."""
        batches, trainer = super().total_train_batches, self.trainer
        left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        return batches if trainer.max_steps < 0 else min(batches, left)
