"""Two gloo processes train what one process trains at the same global batch, and none waits for ever for another."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.main import main

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]
TRACED = Path(__file__).parents[1] / "traced_train.py"
STRATEGIES = {
    "ddp": ["trainer.devices=2", "trainer.strategy=ddp"],
    "fsdp": [
        *("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy.data_parallel_size=2"),
        "training.activation_checkpointing=true",
    ],
}
LIMIT_S = 180
"""A job that hangs is a failed test."""
COMMON = ["debug=smoke", "data=text_files", "data.paths=[text]", "data.tokenizer.kind=byte", "optimizer=adamw"]
COMMON += ["optimizer.lr=1e-3", "trainer.precision=32-true", "trainer.log_every_n_steps=1"]
COMMON += ["~callbacks.trade_off", "checkpointing.every_n_steps=2", "checkpointing.keep=9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of this file lie, the single process's in `one`."""
    here = tmp_path_factory.mktemp("processes")
    draw = random.Random(0)
    (here / "text").mkdir()
    for number in range(40):
        lines = [f"value_{draw.randrange(9)} = function_{draw.randrange(9)}({draw.randrange(99)})" for _ in range(80)]
        (here / f"text/part{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    before = Path.cwd()
    os.chdir(here)
    try:
        assert main(["train", *COMMON, "data.batch_size=4", "hydra.run.dir=one"]) == 0
    finally:
        os.chdir(before)
    return here


def train(folder: Path, name: str, settings: list[str], kill_at: str = "") -> tuple[int, str, float]:
    """Exit code, what was printed, and seconds of a job of two processes."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PL_")}
    environment |= {"TRACE": str(folder / f"{name}.trace"), "KILL_AT": kill_at}
    begin = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            str(TRACED),
            "train",
            *COMMON,
            "data.batch_size=2",
            *settings,
            f"hydra.run.dir={name}",
            "resume=auto",
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - begin


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_job_that_lost_a_process_goes_on_and_equals_one_process(folder: Path, strategy: str) -> None:
    settings = STRATEGIES[strategy]
    code, told, seconds = train(folder, strategy, settings, kill_at="training_step,1,0,1,SIGKILL")
    assert code != 0, "one of two processes was killed"
    assert seconds < 60, told[-3000:]
    places = [json.loads(line)[:3] for line in (folder / f"{strategy}.trace").read_text().splitlines()]
    assert [1, 0, 1] in places, "it was killed where it should be"
    assert [1, 1, 1] not in places
    code, told, _ = train(folder, strategy, settings)
    assert code == 0, told[-3000:]
    assert "step_0000002.ckpt" in told

    single, double = (json.loads((folder / name / "result.json").read_text()) for name in ("one", strategy))
    for name in ("val/loss_backbone", "val/loss_recycle", "val/agreement", "val/bits_per_byte"):
        assert double["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-4), name
    assert double["metrics"]["decode/tokens_per_s_verified"] > 0
    assert double["train"]["tokens"] == single["train"]["tokens"]
    mine, other = (load_trained(folder / name).model for name in (strategy, "one"))
    for weight, wanted in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-5)
    rows = (folder / strategy / "decoding.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [3, 6], "one process writes, a row an epoch"


def test_another_number_of_processes_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chdir(folder)
    settings = [*COMMON, "data.batch_size=2", "trainer.max_epochs=3", *STRATEGIES["ddp"], "hydra.run.dir=other"]
    assert main(["train", *settings, "resume=one"]) == 2
    told = capsys.readouterr().err
    assert "the number of processes: the checkpoint was trained with 1, this run has 2" in told
    assert "Traceback" not in told
