"""A run that is killed anywhere and started again by the same command ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recyclegpt.callbacks import CheckpointEverySteps, EpochSummary
from recyclegpt.checkpoints.file import list_checkpoints, read_checkpoint
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.runs import folder as run_folder
from recyclegpt.training import LitRecycleGPT

Run = Callable[..., int]
Place = tuple[str, int, int]
"""Hook, epoch and batch."""

TRACED = Path(__file__).parents[1] / "traced_train.py"
# Two epochs of three steps, each of two batches; checkpoints after steps 2, 3 (at no interval, so not) 4 and 6.
SETTINGS = ["trainer.limit_train_batches=6", "trainer.accumulate_grad_batches=2", "checkpointing.every_n_steps=2"]
POINTS: dict[str, Place] = {
    "first step": ("training_step", 0, 1),
    "inside an accumulation window": ("training_step", 0, 5),
    "validation step": ("validation_step", 0, 1),
    "epoch boundary": ("on_train_epoch_start", 1, 0),
    "mid epoch": ("training_step", 1, 3),
    "last step": ("training_step", 1, 5),
    "after the last step": ("on_train_end", 2, 0),
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved when it comes."""


class Watched:
    """Patches the LightningModule to die where told, and to note which rows were trained on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.point: Place | None = None
        self.rows: dict[tuple[int, int], tuple[int, ...]] = {}
        self.begun: list[tuple[int, int]] = []
        step, validation = LitRecycleGPT.training_step, LitRecycleGPT.validation_step

        def training_step(module: LitRecycleGPT, batch: Any, batch_idx: int) -> Any:
            place = (module.current_epoch, batch_idx)
            rows = tuple(batch.rows_B.tolist())
            assert self.rows.setdefault(place, rows) == rows, "a place has the same rows in every attempt"
            self.begun.append(place)
            self.die("training_step", *place)
            return step(module, batch, batch_idx)

        def validation_step(module: LitRecycleGPT, batch: Any, batch_idx: int) -> None:
            self.die("validation_step", module.current_epoch, batch_idx)
            validation(module, batch, batch_idx)

        patch.setattr(LitRecycleGPT, "training_step", training_step)
        patch.setattr(LitRecycleGPT, "validation_step", validation_step)
        for hook in ("on_train_epoch_start", "on_train_end"):
            plain = getattr(LitRecycleGPT, hook)

            def dying(module: LitRecycleGPT, hook: str = hook, plain: Any = plain) -> None:
                self.die(hook, module.current_epoch, 0)
                plain(module)

            patch.setattr(LitRecycleGPT, hook, dying)

    def die(self, hook: str, epoch: int, batch: int) -> None:
        if self.point == (hook, epoch, batch):
            self.point = None
            raise Killed


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def assert_same_weights(mine: str, other: str) -> None:
    left, right = load_trained(mine), load_trained(other)
    assert left.step == right.step == 6
    for (name, weight), wanted in zip(left.model.state_dict().items(), right.model.state_dict().values(), strict=True):
        assert torch.equal(weight, wanted), name


def same_state(mine: Any, other: Any, path: str = "") -> None:
    """Every tensor and value of two checkpoints is equal, except what says how long something took."""
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, other), path
    elif isinstance(mine, dict):
        assert mine.keys() == other.keys(), path
        for key in mine:
            if key not in ("seconds", "folder", "dirpath", "config"):
                same_state(mine[key], other[key], f"{path}.{key}")
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(other), path
        for number, pair in enumerate(zip(mine, other, strict=True)):
            same_state(*pair, f"{path}[{number}]")
    else:
        assert mine == other, path


@pytest.mark.parametrize(
    ("num_workers", "precision", "optimizer"), [(0, "32-true", "muon"), (2, "bf16-mixed", "adamw")]
)
def test_killed_at_every_kind_of_moment_one_after_the_other(
    run: Run, small: list[str], watched: Watched, num_workers: int, precision: str, optimizer: str
) -> None:
    """A resume of a resume of a resume: seven deaths in one run."""
    settings = [*small, *SETTINGS, f"data.num_workers={num_workers}", f"trainer.precision={precision}"]
    settings += [f"optimizer={optimizer}", "loss=two_step", "loss.schedule_switch=0.5"]
    assert run("train", *settings, "hydra.run.dir=whole", "callbacks=no_monitor") == 0
    reference, watched.rows = watched.rows, {}
    watched.begun.clear()
    assert len(reference) == 12
    command = [*settings, "hydra.run.dir=parts", "callbacks=no_monitor", "resume=auto"]
    for name, point in POINTS.items():
        watched.point = point
        with pytest.raises(Killed):
            run("train", *command)
        assert watched.point is None, name
    assert run("train", *command) == 0

    assert watched.rows == reference, "no row was left out and none came twice"
    # From the checkpoint on, and not from the beginning of the epoch: batches after those of steps 2 and 4.
    restarts = [place for before, place in zip(watched.begun, watched.begun[1:], strict=False) if place <= before]
    assert restarts == [(0, 0), (0, 4), (0, 4), (0, 4), (1, 2), (1, 2)]
    assert_same_weights("parts", "whole")
    whole, parts = (read_checkpoint(list_checkpoints(Path(name, "checkpoints"))[0]) for name in ("whole", "parts"))
    for part in ("optimizer_states", "lr_schedulers", "TextFilesData", "callbacks", "skipped_steps"):
        same_state(parts[part], whole[part], part)
    results = [json.loads(Path(name, "result.json").read_text()) for name in ("parts", "whole")]
    assert results[0]["train"]["tokens"] == results[1]["train"]["tokens"]
    for name in ("val/loss_backbone", "val/loss_recycle", "val/agreement"):
        assert results[0]["metrics"][name] == results[1]["metrics"][name], name


def test_curves_have_every_step_once_and_no_epoch_is_missing(run: Run, small: list[str], watched: Watched) -> None:
    command = [*small, *SETTINGS, "hydra.run.dir=one", "resume=auto", "trainer.log_every_n_steps=1"]
    for name in ("validation step", "mid epoch"):
        watched.point = POINTS[name]
        with pytest.raises(Killed):
            run("train", *command)
    assert run("train", *command) == 0
    events = EventAccumulator("one/tensorboard", size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(6))
    assert [event.step for event in events.Scalars("val/loss_backbone")] == [2, 5]
    rows = [json.loads(line) for line in Path("one/decoding.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]


def test_sigterm_saves_the_step_and_the_same_command_resumes(
    run: Run, small: list[str], watched: Watched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*small, "callbacks=no_monitor", "name=told", "resume=auto", "trainer.limit_train_batches=3"]
    begin = Trainer.fit

    def told_to_end(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # After half a second or as soon as training runs: the handler is there by then.
        checkpoints = next(callback for callback in trainer.callbacks if isinstance(callback, CheckpointEverySteps))  # type: ignore[attr-defined]
        plain = checkpoints.on_train_start

        def started(*hook_args: Any) -> None:
            plain(*hook_args)
            os.kill(os.getpid(), signal.SIGTERM)

        checkpoints.on_train_start = started  # type: ignore[method-assign]
        begin(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", told_to_end)
        assert run("train", *command) == 143
    told = capsys.readouterr().err
    assert "stopped by SIGTERM after step 1, saved" in told
    assert "Traceback" not in told
    (folder,) = Path("outputs/train/told").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    assert "stopped by SIGTERM after step 1" in result["error"]
    assert run("train", *command) == 0
    assert list(Path("outputs/train/told").iterdir()) == [folder]
    assert json.loads((folder / "result.json").read_text())["status"] == "completed"
    assert sorted(watched.begun) == [(epoch, batch) for epoch in (0, 1) for batch in (0, 1, 2)], "each batch once"


def test_a_damaged_newest_checkpoint_is_passed_over(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*small, "callbacks=no_monitor", "checkpointing.every_n_steps=2", "checkpointing.keep=9", "resume=auto"]
    assert run("train", *command, "hydra.run.dir=whole") == 0
    assert run("train", *command, "hydra.run.dir=hurt") == 0
    Path("hurt/result.json").unlink()
    newest = Path("hurt/checkpoints/step_0000006.ckpt")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert run("train", *command, "hydra.run.dir=hurt") == 0
    told = capsys.readouterr()
    assert "using step_0000004.ckpt instead" in told.out + told.err
    assert "resumed hurt/checkpoints/step_0000004.ckpt" in told.err
    assert_same_weights("hurt", "whole")
    for path in Path("hurt/checkpoints").glob("*.ckpt"):
        path.write_bytes(b"")
    Path("hurt/result.json").unlink()
    assert run("train", *command, "hydra.run.dir=hurt") == 2
    assert "move the folder away to start anew" in capsys.readouterr().err


def test_what_cannot_be_resumed_exactly_is_refused_with_every_difference(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str], corpus: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for file in corpus.iterdir():
        (text / file.name).write_bytes(file.read_bytes())
    settings = [*small, f"data.paths=[{text}]", "callbacks=no_monitor", "trainer.max_epochs=1"]
    assert run("train", *settings, "hydra.run.dir=one") == 0
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    other = ["model.num_layers=1", "optimizer=adamw", "data.batch_size=1", "trainer.max_epochs=3"]
    assert run("train", *settings, *other, "resume=one", "hydra.run.dir=two") == 2
    told = capsys.readouterr().err
    for words in (
        "model.num_layers: the checkpoint has 2, this run 1",
        "optimizer: the checkpoint was trained with recyclegpt.training.MuonAdamW",
        "data.batch_size: the checkpoint was trained with 2, this run has 1",
    ):
        assert words in told
    (text / "part00.txt").write_text("another text\n" * 50)
    assert run("train", *settings, "trainer.max_epochs=2", "resume=one", "hydra.run.dir=two") == 2
    told = capsys.readouterr().err
    assert "data: its files have changed: the checkpoint was trained with " in told
    assert "Traceback" not in told
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before, "nothing was left behind"


def test_the_same_command_resumes_a_run_that_was_started_from_another(
    run: Run, small: list[str], watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*small, *SETTINGS, "callbacks=no_monitor", "checkpointing.keep=9"]
    assert run("train", *settings, "hydra.run.dir=whole") == 0
    begin = [*settings, "hydra.run.dir=more", "resume=whole/checkpoints/step_0000002.ckpt"]
    watched.point = ("training_step", 0, 4)
    with pytest.raises(Killed):
        run("train", *begin)
    capsys.readouterr()
    watched.point = POINTS["last step"]
    with pytest.raises(Killed):  # before it had a checkpoint of its own; now resume=auto
        run("train", *begin[:-1], "resume=auto")
    assert "resumed whole/checkpoints/step_0000002.ckpt" in capsys.readouterr().err
    assert run("train", *begin) == 0
    assert "resumed more/checkpoints/step_0000004.ckpt" in capsys.readouterr().err
    assert_same_weights("more", "whole")


def test_a_signal_to_all_processes_of_a_run_stops_it_as_one_to_the_first(small: list[str], tmp_path: Path) -> None:
    """As `timeout`, systemd and a closed terminal send it: data workers get it too, and must not die of it first."""
    command = [sys.executable, str(TRACED), "train", *small, "callbacks=no_monitor", "data.num_workers=2"]
    command += ["trainer.limit_train_batches=100000", "checkpointing.every_n_steps=100000", "hydra.run.dir=run"]
    trace = tmp_path / "trace"
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "TRACE": str(trace)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while process.poll() is None and not (trace.exists() and trace.stat().st_size):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, told[-2000:]
    assert told.count("saving after this step") == 1
    (saved,) = list_checkpoints(tmp_path / "run/checkpoints")
    assert load_trained(saved).step > 0


def test_two_processes_do_not_train_in_one_folder(
    run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT_S", 0.1)
    Path("busy").mkdir()
    with FileLock("busy/.lock"):
        # A thread of its own: a lock that is taken twice in one thread is only counted.
        code: list[int] = []
        thread = threading.Thread(target=lambda: code.append(run("train", *small, "hydra.run.dir=busy")))
        thread.start()
        thread.join()
    assert code == [2]
    assert "another process trains here" in capsys.readouterr().err


def test_a_folder_with_an_unfinished_run_is_not_begun_anew_by_accident(
    run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(EpochSummary, "on_validation_end", out_of_memory)
        with pytest.raises(MemoryError):
            run("train", *small, "callbacks=no_monitor", "checkpointing.every_n_steps=1", "hydra.run.dir=one")
    assert run("train", *small, "callbacks=no_monitor", "checkpointing.every_n_steps=1", "hydra.run.dir=one") == 2
    assert "holds this run, unfinished (resume=auto)" in capsys.readouterr().err
