"""How checkpoints are written, when, which are kept, and how a run that is asked to stop saves and stops.

Signals that ask for it are noted on arrival and acted on between two steps: a handler may run in the middle of an
optimizer step. Lightning's own handler for SIGTERM communicates with other processes inside it, and its handler for
SLURM saves inside it (https://github.com/Lightning-AI/pytorch-lightning/issues/21406); both are replaced while training
runs.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from recyclegpt.checkpoints.file import (
    DamagedCheckpoint,
    SaveError,
    checkpoint_name,
    list_checkpoints,
    read_checkpoint,
    remove_checkpoint,
    remove_temporaries,
    verify,
    write_checkpoint,
)
from recyclegpt.errors import RunError, Stopped


class VerifiedCheckpointIO(CheckpointIO):
    """Atomic writes with a checksum; verified reads that run no code, whatever the caller asks for.

    Args:
        facts: for the file next to each checkpoint, such as the config's hash.
    """

    def __init__(self, facts: dict[str, Any] | None = None) -> None:
        self.facts = facts or {}
        self.error: SaveError | None = None
        """Why the last checkpoint was not written, inside `errors_held`."""
        self._holds_errors = False

    @contextmanager
    def errors_held(self) -> Iterator[None]:
        """Keep a failed write in `error` instead of raising it.

        One process writes while the others wait at a barrier, which an exception would never reach.
        """
        self._holds_errors, self.error = True, None
        try:
            yield
        finally:
            self._holds_errors = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            SaveError: it could not be written, and errors are not held.
        """
        try:
            write_checkpoint(checkpoint, Path(path), {"step": checkpoint.get("global_step"), **self.facts})
        except SaveError as error:
            if not self._holds_errors:
                raise
            self.error = error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint into CPU memory; Lightning moves what it needs to a device."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its checksum."""
        remove_checkpoint(Path(path))


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; what `kill`, preemption and the end of a time limit send; what SLURM can send before a time limit; what a
terminal sends that is closed."""


class StopSignals:
    """Remembers that one of `SIGNALS` came.

    A second Ctrl-C raises KeyboardInterrupt at once; any other second signal changes nothing.

    Attributes:
        received: the first signal that came; None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Handle the signals from now on. Only the main thread can; elsewhere nothing is changed.

        A SIGHUP that is ignored, as under nohup, stays ignored.
        """
        self.received = None
        if threading.current_thread() is threading.main_thread() and not self._before:
            handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in handled}

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        if self.received.name == "SIGHUP":
            _leave_terminal()
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        print(f"\n{self.received.name}: saving after this step, then stopping{again}", file=sys.stderr, flush=True)


def _leave_terminal() -> None:
    """A terminal that is gone refuses every line, which would end the run before it has saved."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


_log = logging.getLogger("recyclegpt")


class CheckpointEverySteps(Checkpoint):
    """Saves every n optimizer steps and once at the end of training, whichever rule ends it, and keeps the newest few.

    A checkpoint is written only between two optimizer steps: inside an accumulation window it would lose the window's
    gradients, so a stop asked for there (`max_time`, early stopping) waits for the window's end. One due at the last
    batch of an epoch is written after that epoch's validation, so that a resumed run has it too; a run that ends
    within an epoch is saved before its last validation, which the uninterrupted run would not have. A file is removed
    only when a newer one is on disk.

    When any process receives SIGINT, SIGTERM, SIGUSR1 or SIGHUP, all finish their step, save and stop (`Stopped`, with
    exit code 128 + the signal's number). After SIGUSR1 inside a SLURM job, the job is requeued.

    The callback needs `VerifiedCheckpointIO` as the trainer's plugin, and is a collective call on several processes.

    Args:
        max_failed: number of failed writes in a row (a full disk, say) that are only reported; one more stops training,
            as does a failure at the end of the run.
    """

    def __init__(self, folder: str, every_n_steps: int = 500, keep: int = 2, max_failed: int = 3) -> None:
        self.folder = Path(folder)
        self.every_n_steps, self.keep, self.max_failed = every_n_steps, keep, max_failed
        self.signals = StopSignals()
        self._last_step = self._num_failed = 0
        self._saved_step: int | None = None
        self._due = self._stop_postponed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        self._saved_step = trainer.global_step if trainer.ckpt_path else None
        if trainer.is_global_zero and self.folder.is_dir():
            remove_temporaries(self.folder)  # of a run that was killed while it saved
        self.signals.install()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step if a checkpoint is due, or if the run ends within its epoch."""
        step, before = trainer.global_step, self._last_step
        self._last_step = step
        if step == before:
            self._postpone_stop(trainer)
            return
        self._due = self._due or step % self.every_n_steps == 0
        # Lightning validates before it stops only where it is asked to.
        trainer.should_stop = trainer.should_stop or self._stop_postponed or 0 <= trainer.max_steps <= step
        self._stop_postponed = False
        if not trainer.is_last_batch:  # after it and validation, in on_train_epoch_end
            self._save_and_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if a validation within an epoch has ended the run."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.is_last_batch:
            return
        if trainer.fit_loop.epoch_loop._should_accumulate():
            self._postpone_stop(trainer)
        elif trainer.should_stop:
            self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_and_stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if another callback has ended the run where none of the hooks above could see it."""
        self._save(trainer, may_fail=False)
        self.signals.restore()

    def _postpone_stop(self, trainer: Trainer) -> None:
        """Inside an accumulation window: finish it first."""
        self._stop_postponed, trainer.should_stop = self._stop_postponed or trainer.should_stop, False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.restore()

    def _save_and_stop(self, trainer: Trainer) -> None:
        is_end = _ends_here(trainer)
        stop = _on_any(trainer, self.signals.received is not None) and not is_end
        if self._due or stop or is_end:
            self._save(trainer, may_fail=not is_end)
        if not stop:
            return
        received = self.signals.received or signal.SIGTERM  # another process was asked
        if trainer.is_global_zero and received == getattr(signal, "SIGUSR1", None):
            requeue()
        step = trainer.global_step
        saved = "saved" if self._saved_step == step else "not saved"
        how = "the same command with resume=auto continues it"
        raise Stopped(f"stopped by {received.name} after step {step}, {saved}; {how}", 128 + received)

    def _save(self, trainer: Trainer, may_fail: bool) -> None:
        self._due = False
        step = trainer.global_step
        if step == self._saved_step:
            return
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, VerifiedCheckpointIO), "CheckpointEverySteps needs this plugin"
        with io.errors_held():
            trainer.save_checkpoint(self.folder / checkpoint_name(step))
        if not _on_any(trainer, io.error is not None):
            self._saved_step, self._num_failed = step, 0
            if trainer.is_global_zero:
                self._prune(step)
            return
        self._num_failed += 1
        reason = str(io.error or "a checkpoint could not be written; the first process says why")
        if self._num_failed > self.max_failed or not may_fail:
            raise RunError(f"{reason}\nthe run stops after step {step}; the same command with resume=auto continues it")
        if io.error is not None:
            count = f"failure {self._num_failed} in a row; checkpointing.max_failed={self.max_failed}"
            _log.error("%s; training continues without it (%s)", reason, count)

    def _prune(self, step: int) -> None:
        """Remove all but the newest; a corrupt checkpoint does not count."""
        num_accepted = 0
        for path in list_checkpoints(self.folder, upto=step):
            try:
                if num_accepted >= self.keep:
                    remove_checkpoint(path)
                else:
                    verify(path)
                    num_accepted += 1
            except DamagedCheckpoint as error:
                _log.warning("%s", error)
            except OSError as error:
                _log.warning("%s could not be removed (%s)", path, error.strerror or error)


def requeue() -> None:
    """Requeue this process's SLURM job; do nothing outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        _log.info("requeued SLURM job %s", job)
    except (OSError, subprocess.SubprocessError) as error:
        _log.error("SLURM job %s could not be requeued (%s); submit it again", job, error)


def _ends_here(trainer: Trainer) -> bool:
    """Whether no further batch will be trained on, by whichever of Lightning's rules."""
    all_epochs = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
    all_steps = 0 <= trainer.max_steps <= trainer.global_step
    return all_epochs or all_steps or (trainer.should_stop and trainer.fit_loop._can_stop_early)


def _on_any(trainer: Trainer, here: bool) -> bool:
    """Whether a condition holds on any process; all processes must call this together."""
    return bool(trainer.strategy.reduce_boolean_decision(here, all=False)) if trainer.world_size > 1 else here
