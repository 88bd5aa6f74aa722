"""When checkpoints are written and kept, and what a signal does to a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from recyclegpt.callbacks import CheckpointEverySteps
from recyclegpt.callbacks.checkpoints import SIGNALS, VerifiedCheckpointIO, requeue
from recyclegpt.checkpoints import file as checkpoint_file
from recyclegpt.checkpoints.file import SaveError, list_checkpoints, sidecar, verify
from recyclegpt.errors import RunError, Stopped

NUM_BATCHES = 6


class Net(LightningModule):
    """Calls `at(place, batch)` wherever a signal may come."""

    def __init__(self, at: Callable[[str, int], None] | None = None) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.at = at or (lambda _place, _number: None)
        self.num_validations = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.at("train", batch_idx)
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.at("validate", batch_idx)
        self.num_validations += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class Loader(DataLoader[Any]):
    """Lightning warns of a loader without a state; which rows come is of no interest here."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def fit(
    folder: Path,
    module: Net | None = None,
    epochs: int = 2,
    accumulate: int = 1,
    max_steps: int = -1,
    val_check_interval: int | None = None,
    more: Sequence[Callback] = (),
    **settings: Any,
) -> CheckpointEverySteps:
    checkpoints = CheckpointEverySteps(str(folder), **settings)
    data = TensorDataset(torch.randn(NUM_BATCHES, 2, generator=torch.Generator().manual_seed(0)))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        max_steps=max_steps,
        val_check_interval=val_check_interval,
        accumulate_grad_batches=accumulate,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpoints, *more],
        plugins=[VerifiedCheckpointIO()],
    )
    newest = next(iter(list_checkpoints(folder)), None)
    loader = Loader(data, batch_size=1, generator=torch.Generator())
    trainer.fit(module or Net(), loader, loader, ckpt_path=newest, weights_only=True)
    return checkpoints


def steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step_")) for path in reversed(list_checkpoints(folder))]


def test_saves_every_n_steps_and_keeps_the_newest(tmp_path: Path) -> None:
    fit(tmp_path, every_n_steps=4, keep=9)
    assert steps(tmp_path) == [4, 8, 12]
    fit(tmp_path / "few", every_n_steps=2, keep=2)
    assert steps(tmp_path / "few") == [10, 12]
    assert {file.name for file in (tmp_path / "few").iterdir()} == {
        file.name for path in list_checkpoints(tmp_path / "few") for file in (path, sidecar(path))
    }
    fit(tmp_path / "last", every_n_steps=100)
    assert steps(tmp_path / "last") == [12], "the last is saved whatever the interval"


def test_after_a_window_of_accumulation_and_after_an_epochs_validation(tmp_path: Path) -> None:
    at: list[tuple[int, int, int]] = []

    class Watched(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            at.append((self.trainer.global_step, batch, self.num_validations))

    fit(tmp_path, Watched(), accumulate=2, every_n_steps=1, keep=9)
    # One checkpoint a step, after the second batch of its window, and none twice.
    assert at == [(1, 2, 0), (2, 4, 0), (3, 6, 1), (4, 2, 1), (5, 4, 1), (6, 6, 2)]


@pytest.mark.parametrize(
    ("hook", "settings", "end", "validated"),
    [
        ("none", {"max_steps": 4}, 4, 1),
        ("none", {"max_steps": 6}, 6, 1),
        ("none", {"max_steps": 2, "accumulate": 2}, 2, 1),
        ("none", {"max_steps": 4, "every_n_steps": 4}, 4, 1),
        ("on_train_batch_end", {}, 3, 1),  # as `max_time` does
        ("on_train_batch_end", {"accumulate": 2}, 2, 1),  # the third batch is inside a window
        ("on_validation_end", {"val_check_interval": 3}, 3, 1),  # as early stopping does
        ("on_validation_end", {"val_check_interval": 3, "accumulate": 2}, 2, 2),
        ("on_train_epoch_end", {}, 6, 1),
    ],
)
def test_every_way_to_end_saves_once_and_resumes(
    tmp_path: Path, hook: str, settings: dict[str, Any], end: int, validated: int
) -> None:
    saved: list[int] = []

    class Ends(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            saved.append(checkpoint["global_step"])

    class Stop(Callback):
        def stop(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.should_stop or trainer.fit_loop.epoch_loop.total_batch_idx >= 2

    setattr(Stop, hook, Stop.stop)
    module = Ends()
    fit(tmp_path, module, epochs=2, keep=9, more=[Stop()], **settings)
    assert saved == [end]
    assert module.num_validations == validated
    module = Ends()
    fit(tmp_path, module, epochs=2, keep=9, **{**settings, "max_steps": -1})
    steps_of_all = 12 // settings.get("accumulate", 1)
    assert saved[-1] == steps_of_all
    assert saved.count(steps_of_all) == 1
    assert module.trainer.fit_loop.epoch_loop.batch_progress.total.completed == 12


def raising(number: int, place: str, batch: int) -> Callable[[str, int], None]:
    """Sends this process a signal, once, at that point."""
    sent: list[int] = []

    def at(where: str, which: int) -> None:
        if (where, which) == (place, batch) and not sent:
            sent.append(1)
            os.kill(os.getpid(), number)

    return at


@pytest.mark.parametrize(
    ("number", "code", "place", "batch", "accumulate", "step"),
    [
        (signal.SIGTERM, 143, "train", 1, 1, 2),
        (signal.SIGINT, 130, "train", 1, 1, 2),
        (signal.SIGUSR1, 138, "train", 1, 1, 2),
        (signal.SIGHUP, 129, "train", 1, 1, 2),
        (signal.SIGTERM, 143, "train", 2, 2, 2),  # the window is finished first
        (signal.SIGTERM, 143, "train", 5, 1, 6),  # the epoch's last batch: validation comes first
        (signal.SIGTERM, 143, "validate", 0, 1, 6),
    ],
)
def test_a_signal_saves_between_two_steps_and_stops(
    tmp_path: Path, number: int, code: int, place: str, batch: int, accumulate: int, step: int
) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, Net(raising(number, place, batch)), accumulate=accumulate)
    assert stopped.value.code == code
    assert f"stopped by {signal.Signals(number).name} after step {step}, saved" in stopped.value.message
    assert steps(tmp_path) == [step]
    assert verify(list_checkpoints(tmp_path)[0])
    assert [signal.getsignal(each) for each in SIGNALS] == before
    whole = Net()
    fit(tmp_path, whole, accumulate=accumulate)
    assert steps(tmp_path)[-1] == 12 // accumulate


def test_a_signal_in_the_last_epochs_validation_lets_the_run_end(tmp_path: Path) -> None:
    fit(tmp_path, Net(raising(signal.SIGTERM, "validate", 0)), epochs=1)
    assert steps(tmp_path) == [6]


def test_a_second_signal_is_safe_and_a_second_ctrl_c_stops_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice(where: str, which: int) -> None:
        if (where, which) == ("train", 1):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        fit(tmp_path, Net(twice))
    assert steps(tmp_path) == [2]
    assert capsys.readouterr().err.count("saving after this step") == 1

    class AgainWhileSaving(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as leaving:  # Lightning's answer to KeyboardInterrupt
        fit(tmp_path, AgainWhileSaving(raising(signal.SIGINT, "train", 3)), every_n_steps=100)
    assert isinstance(leaving.value.__context__, KeyboardInterrupt)
    assert steps(tmp_path) == [2], "the older checkpoint is intact"
    assert verify(list_checkpoints(tmp_path)[0])


def failing(monkeypatch: pytest.MonkeyPatch, at_steps: set[int]) -> None:
    plain = checkpoint_file.write_checkpoint

    def instead(checkpoint: dict[str, Any], path: Path, facts: dict[str, Any] | None = None) -> None:
        if checkpoint["global_step"] in at_steps:
            raise SaveError(f"checkpoint: {path} could not be written (the disk is full)")
        plain(checkpoint, path, facts)

    monkeypatch.setattr("recyclegpt.callbacks.checkpoints.write_checkpoint", instead)


def test_a_checkpoint_that_cannot_be_written_is_reported_and_costs_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing(monkeypatch, {4, 6, 10})
    fit(tmp_path, every_n_steps=2, keep=2, max_failed=2)
    assert steps(tmp_path) == [8, 12]
    assert caplog.text.count("the disk is full") == 3
    assert "2 in a row" in caplog.text


def test_too_many_failures_in_a_row_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, {4, 6, 8})
    with pytest.raises(RunError, match="the run stops after step 8"):
        fit(tmp_path, every_n_steps=2, keep=2, max_failed=2)
    assert steps(tmp_path) == [2]


def test_the_last_checkpoint_may_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, {12})
    with pytest.raises(RunError, match="the disk is full"):
        fit(tmp_path, max_failed=9)


def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1, every_n_steps=2, keep=9)
    assert steps(tmp_path) == [2, 4, 6]
    (tmp_path / "step_0000004.ckpt").write_bytes(b"")
    CheckpointEverySteps(str(tmp_path), keep=2)._prune(step=6)
    assert steps(tmp_path) == [2, 4, 6], "two that are sound, and the damaged one between them"
    CheckpointEverySteps(str(tmp_path), keep=1)._prune(step=6)
    assert steps(tmp_path) == [6]


@pytest.mark.parametrize(
    ("variables", "called"),
    [
        ({"SLURM_JOB_ID": "77"}, "requeue 77"),
        ({"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 70_3"),
        ({}, ""),
    ],
)
def test_a_slurm_job_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], called: str
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\nprintf "%s" "$*" >> {tmp_path}/called\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    requeue()
    assert ((tmp_path / "called").read_text() if called else "") == called
    assert called or not (tmp_path / "called").exists()


def test_temporaries_of_a_killed_run_are_removed_at_the_start(tmp_path: Path) -> None:
    left = tmp_path / ".step_0000002.ckpt.0123abcd.tmp"
    left.touch()
    fit(tmp_path)
    assert not left.exists()
