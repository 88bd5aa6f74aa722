"""Two gloo processes train what one process trains at the same global batch, and none waits for ever."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recyclegpt.cli.main import main
from recyclegpt.training.checkpoint import load_trained

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]


def corpus(folder: Path) -> Path:
    draw = random.Random(0)
    for number in range(40):
        lines = [f"value_{draw.randrange(9)} = function_{draw.randrange(9)}({draw.randrange(99)})" for _ in range(80)]
        (folder / f"part{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    common = ["debug=smoke", "data=text_files", f"data.paths=[{corpus(text)}]", "data.tokenizer.kind=byte"]
    common += ["trainer.precision=32-true", "optimizer=adamw", "optimizer.lr=1e-3"]
    assert main(["train", *common, "data.batch_size=4", "hydra.run.dir=one"]) == 0

    two = ["data.batch_size=2", "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=two"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    done = subprocess.run(
        [sys.executable, "-m", "recyclegpt", "train", *common, *two],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    single, double = (json.loads(Path(name, "result.json").read_text()) for name in ("one", "two"))
    for name in ("val/loss_backbone", "val/loss_recycle", "val/agreement", "val/bits_per_byte"):
        assert double["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-4), name
    assert double["metrics"]["decode/tokens_per_s_verified"] > 0
    assert double["train"]["tokens"] == single["train"]["tokens"]
    for mine, other in zip(load_trained("two").model.parameters(), load_trained("one").model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    assert len(Path("two/decoding.jsonl").read_text().splitlines()) == 2, "one rank writes"
