"""Validation leaves training's random numbers alone, and a resumed run draws the numbers the whole one drew."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recyclegpt.callbacks.rng import RngIsolation, capture_rng, isolated_rng, restore_rng
from recyclegpt.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # Lightning 2.6 under torch 2.13.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


class Noisy(LightningModule):
    """Draws from all three generators in training and in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.drawn: list[list[float]] = []

    def training_step(self, batch, batch_idx):
        self.drawn.append(draw())
        return self.net(batch[0] + sum(self.drawn[-1])).square().mean()

    def validation_step(self, batch, batch_idx):
        draw()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class SaveAfter(Callback):
    """Saves in the middle of a run, as a crash would find it."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path
        self.num_drawn = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            self.num_drawn = len(pl_module.drawn)


class Rows:
    """An endless training loader that knows where it stands and draws no random numbers."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self):
        while True:
            self.position += 1
            yield [torch.full((1, 4), float(self.position))]

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]


def validation_loader() -> DataLoader:
    """Has no generator of its own: its seed comes from the global one, before any hook of validation."""
    return DataLoader(TensorDataset(torch.zeros(6, 4)))


def fit(tmp_path: Path, validate: bool = True, ckpt_path=None, callbacks=None):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    module = Noisy()
    if ckpt_path is not None:
        # As after a start-up that draws other numbers.
        torch.manual_seed(99), random.seed(99), np.random.seed(99)
    callbacks = [RngIsolation()] if callbacks is None else callbacks
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=6,
        limit_val_batches=2 if validate else 0,
        val_check_interval=2,
        num_sanity_val_steps=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Rows(), validation_loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer, module


def test_training_with_validation_equals_training_without(tmp_path: Path) -> None:
    _, without = fit(tmp_path, validate=False)
    _, with_validation = fit(tmp_path)
    assert without.drawn == with_validation.drawn
    assert len(without.drawn) == 12
    for left, right in zip(without.parameters(), with_validation.parameters(), strict=True):
        assert torch.equal(left, right)


def test_without_the_callback_validation_changes_training(tmp_path: Path) -> None:
    _, without = fit(tmp_path, validate=False)
    _, with_validation = fit(tmp_path, callbacks=[])
    assert without.drawn != with_validation.drawn


@pytest.mark.parametrize("step", [1, 2, 5, 6, 9])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, step: int) -> None:
    checkpoint = tmp_path / "checkpoint.ckpt"
    save = SaveAfter(step, checkpoint)
    _, whole = fit(tmp_path, callbacks=[RngIsolation(), save])
    assert save.num_drawn == step
    _, resumed = fit(tmp_path, ckpt_path=checkpoint)
    assert resumed.drawn == whole.drawn[step:]
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_states_load_with_weights_only() -> None:
    file = io.BytesIO()
    torch.save(RngIsolation().state_dict(), file)
    expected = draw()
    file.seek(0)
    restore_rng(torch.load(file, weights_only=True)["ranks"][0])
    assert draw() == expected


def test_a_checkpoint_of_other_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match="written by 2 processes, read by 1"):
        RngIsolation().load_state_dict({"ranks": [capture_rng(), capture_rng()]})


def test_isolated_rng_restores_also_after_an_error() -> None:
    before = capture_rng()
    expected = draw()
    restore_rng(before)
    with isolated_rng():
        draw()

    def draw_and_fail() -> None:
        with isolated_rng():
            draw()
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert draw() == expected
