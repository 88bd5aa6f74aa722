"""Random-number states: validation does not change them, and a resumed run continues with the saved ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from recyclegpt.errors import ConfigError


def capture_rng() -> dict[str, Any]:
    """States of python's, numpy's and torch's global generators, as plain data that loads with `weights_only=True`."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        # Reading initialises CUDA, so only where this process uses it anyway.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        # A machine may have fewer devices than the one that saved; a process computes on one of its first.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


@contextmanager
def isolated_rng() -> Iterator[None]:
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


class RngIsolation(Callback):
    """Makes random numbers of training independent of validation, and part of every checkpoint.

    States are captured when a training batch ends (a validation loader draws its seed before any validation hook runs)
    and restored when validation ends; loaded ones when the first training batch starts, because start-up draws numbers
    too. A callback that draws numbers at the end of validation must use `isolated_rng`.

    With several processes a checkpoint holds the states of all of them, and saving is a collective call.
    """

    def __init__(self) -> None:
        self._after_batch: dict[str, Any] | None = None
        self._held: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states that training continues with, of every rank."""
        own = self._loaded or self._held or capture_rng()
        ranks: list[Any] = [own]
        if dist.is_initialized():
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep this rank's states until the first batch.

        Raises:
            ConfigError: the checkpoint was written by another number of processes.
        """
        ranks = state_dict["ranks"]
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if len(ranks) != world_size:
            raise ConfigError(f"resume: written by {len(ranks)} processes, read by {world_size}; use {len(ranks)}")
        self._loaded = ranks[rank]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._after_batch = self._held = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._loaded is not None:
            restore_rng(self._loaded)
            self._loaded = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._after_batch = capture_rng()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        within_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        self._held = self._after_batch if within_fit and self._after_batch is not None else capture_rng()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._held is not None:
            restore_rng(self._held)
            self._held = None
