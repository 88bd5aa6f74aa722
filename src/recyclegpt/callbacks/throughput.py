"""How fast training runs, how long it waits for data, how much memory it takes; and what a terminal shows of it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from recyclegpt.hardware.device import device_name, peak_flops
from recyclegpt.hardware.measure import peak_memory_bytes, synchronise
from recyclegpt.models import RecycleGPT
from recyclegpt.training.step_cost import flops_per_token


class Throughput(Callback):
    """Logs `train/tokens_per_s`, `step_time_s`, `data_wait_fraction`, `memory_bytes` and `mfu` at the log interval.

    The clock stops from the start of validation to the next training batch, so validation, decoding and an epoch's
    checkpoint do not count. Tokens are those of all processes, the other values of this one. The device is synchronised
    only when a value is logged and when the clock stops.

    Attributes:
        total_tokens: positions of the backbone trained on in the whole run, also before a restart.
        total_seconds: time that training them took.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.total_tokens = 0
        self._seconds = self._wait_s = 0.0
        self._started_at: float | None = None
        self._batch_ended_at = math.nan
        self._logged = (0.0, 0.0, 0, 0)

    @property
    def total_seconds(self) -> float:
        return self._seconds if self._started_at is None else self._seconds + self.clock() - self._started_at

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.total_tokens, "seconds": self.total_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total_tokens, self._seconds = state_dict["tokens"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = (self.total_seconds, self._wait_s, self.total_tokens, trainer.global_step)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = self.clock()
        if self._started_at is None:
            self._started_at = now
        else:
            self._wait_s += now - self._batch_ended_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.total_tokens += batch.views_NBT[0].numel() * trainer.world_size
        every_n_steps = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every_n_steps and trainer.global_step % every_n_steps == 0 and trainer.global_step > self._logged[3]:
            synchronise(pl_module.device)
            self._log(trainer, pl_module, batch)
        self._batch_ended_at = self.clock()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._started_at is not None:
            synchronise(pl_module.device)
            self._seconds, self._started_at = self.total_seconds, None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the clock without waiting for a device that may have failed."""
        self._seconds, self._started_at = self.total_seconds, None

    def _log(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        now = (self.total_seconds, self._wait_s, self.total_tokens, trainer.global_step)
        seconds, wait_s, num_tokens, num_steps = (new - old for new, old in zip(now, self._logged, strict=True))
        self._logged = now
        peak = peak_flops(device_name(pl_module.device)) * trainer.world_size
        pl_module.log("train/tokens_per_s", num_tokens / seconds, prog_bar=True)
        pl_module.log("train/step_time_s", seconds / num_steps)
        pl_module.log("train/data_wait_fraction", wait_s / seconds)
        pl_module.log("train/memory_bytes", peak_memory_bytes(pl_module.device))
        pl_module.log("train/mfu", num_tokens / seconds * _flops_per_token(pl_module, batch) / peak)


def _flops_per_token(pl_module: LightningModule, batch: Any) -> float:
    model, (num_views, _, seq_len) = pl_module.model, batch.views_NBT.shape
    if not isinstance(model, RecycleGPT):
        return math.nan
    train_backbone = any(parameter.requires_grad for parameter in model.backbone.parameters())
    return flops_per_token(model.config, model.recycle_config, seq_len, num_views - 2, train_backbone)


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
