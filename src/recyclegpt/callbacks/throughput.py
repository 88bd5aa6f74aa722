"""How fast training runs, how long it waits for data and how much memory it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from recyclegpt.hardware.device import device_name, peak_flops
from recyclegpt.hardware.memory import peak_memory_bytes
from recyclegpt.hardware.stopwatch import synchronise
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
