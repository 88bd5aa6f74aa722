"""Thirty SIGKILLs, ten of them while a checkpoint is being written; every run ends bit-identical without help."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

NUM_RUNS = 10
KILLS = ("anywhere", "in a save", "anywhere")
"""Of each run, one after the other, so that two of three resumes are resumes of a resume."""
SETTINGS = (
    "data.num_workers=2",
    "trainer.precision=bf16-mixed",
    "trainer.limit_train_batches=40",
    "trainer.accumulate_grad_batches=2",
    "checkpointing.every_n_steps=3",
    # Large enough that writing it takes a while.
    "model.hidden_size=256",
    "model.intermediate_size=1024",
    "model.num_layers=4",
    "model.num_heads=4",
)


def test_thirty_kills(make_runs: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    runs = make_runs(*SETTINGS)
    runs.finish("reference")
    seconds = json.loads((runs.here / "reference/result.json").read_text())["train"]["seconds"]
    kills: list[tuple[str, str, int]] = []
    for number in range(NUM_RUNS):
        name = f"run{number}"
        for kind in KILLS:
            while not kill(runs, name, kind, draw.uniform(0, seconds / 3)):
                pass  # no checkpoint was being written at that moment after all; the run continues and is killed again
            kills.append((name, kind, len(runs.rows(name))))
        runs.finish(name)
        runs.assert_equal(name, "reference")
        with capsys.disabled():
            at = ", ".join(f"{kind} after {batches} batches" for run, kind, batches in kills if run == name)
            print(f"\n{name}: killed {at}; ended bit-identical", flush=True)
    assert len(kills) == 30
    assert sum(kind == "in a save" for _, kind, _ in kills) == 10


def kill(runs: Any, name: str, kind: str, after_s: float) -> bool:
    """Start the run and kill it some time after its first batch. Whether the moment was of the kind that is wanted."""
    before = runs.trace(name).stat().st_size if runs.trace(name).exists() else 0
    process = runs.start(name)
    wait_until(process, lambda: runs.trace(name).exists() and runs.trace(name).stat().st_size > before)
    folder = runs.here / name / "checkpoints"
    time.sleep(after_s)
    if kind == "in a save":
        wait_until(process, lambda: temporaries(folder), pause_s=0)
    assert process.poll() is None, "the run ended before it was killed; make it longer"
    process.kill()
    process.wait()
    return kind != "in a save" or bool(temporaries(folder))


def wait_until(process: subprocess.Popen[str], done: Callable[[], object], pause_s: float = 0.01) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(pause_s)


def temporaries(folder: Path) -> list[Path]:
    return [file for file in folder.glob(".*.tmp") if ".ckpt." in file.name]
