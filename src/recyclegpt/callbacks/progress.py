"""What a terminal shows of training: a progress bar for steps of any length, a row of a table for every epoch."""

from __future__ import annotations

import math
import sys
import time

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

COLUMNS = (
    ("ppl backbone", "val/ppl_backbone", ".1f"),
    ("module", "val/ppl_recycle", ".1f"),
    ("alternating", "val/ppl_alternating", ".1f"),
    ("agreement", "val/agreement", ".1%"),
    ("tokens/s autoregressive", "decode/tokens_per_s_autoregressive", ".0f"),
    ("alternating", "decode/tokens_per_s_alternating", ".0f"),
    ("verified", "decode/tokens_per_s_verified", ".0f"),
    ("acceptance rate", "decode/acceptance", ".1%"),
    ("mean accepted length", "decode/mean_accepted_length", ".2f"),
)


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


class EpochSummary(Callback):
    """Prints held-out quality and decoding speed as a row of a table, under the progress bar."""

    printed_header = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All metrics of the epoch have been logged by now."""
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != TrainerFn.FITTING:
            return
        if not self.printed_header:
            _print(trainer, "  ".join(["epoch", *(title for title, _, _ in COLUMNS)]))
            self.printed_header = True
        cells = [f"{trainer.current_epoch + 1:5}"]
        for title, tag, form in COLUMNS:
            value = float(trainer.callback_metrics.get(tag, math.nan))
            cells.append(("-" if math.isnan(value) else format(value, form)).rjust(len(title)))
        _print(trainer, "  ".join(cells))


def _print(trainer: Trainer, line: str) -> None:
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.print(line)
    else:
        print(line, flush=True)
