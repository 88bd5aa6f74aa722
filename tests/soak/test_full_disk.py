"""A real file system that fills up while a checkpoint is written. Needs the right to mount one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from recyclegpt.checkpoints.file import list_checkpoints, verify
from recyclegpt.commands.main import main

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False).returncode == 0
    if not mounted:
        pytest.skip("needs root, to mount a tmpfs; tests/unit/checkpoints/test_file.py simulates one")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_fills_up(text: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "callbacks=no_monitor",
        "checkpointing.every_n_steps=1",
        "checkpointing.keep=99",
        "checkpointing.max_failed=2",
    ]
    settings += [
        "callbacks=no_monitor",
        "model.hidden_size=64",
        "trainer.limit_train_batches=20",
        f"hydra.run.dir={small_disk}/run",
    ]
    common = ["debug=smoke", "data=text_files", f"data.paths=[{text}]", "data.tokenizer.vocab_size=300"]
    assert main(["train", *common, *settings]) == 1
    captured = capsys.readouterr()
    told = captured.out + captured.err
    assert "Traceback" not in told
    assert told.count("the disk is full") >= 3
    assert "earlier checkpoints are intact" in told
    assert "training continues without it (failure 1 in a row" in told
    assert "the run stops after step" in told
    found = list_checkpoints(small_disk / "run/checkpoints")
    assert len(found) >= 2
    assert all(verify(path) for path in found)
    assert not list((small_disk / "run/checkpoints").glob(".*.tmp"))
    assert json.loads((small_disk / "run/result.json").read_text())["status"] == "failed"
    with capsys.disabled():
        print(f"\n{len(found)} checkpoints intact; told: {captured.err.strip().splitlines()[-2]}")

    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)  # someone frees space
    assert main(["train", *common, *settings, "resume=auto"]) == 0
