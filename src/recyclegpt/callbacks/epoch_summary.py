"""One line on the console after every validation epoch."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer
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
