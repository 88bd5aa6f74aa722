"""docs/how-to.md: its script runs on a trained model, its shape file trains. Its commands compose, and so do those of
docs/reproducing.md.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recyclegpt.configuration.compose import compose_or_explain

from .test_readme import ROOT, blocks, command_lines

HOW_TO, REPRODUCING = ROOT / "docs" / "how-to.md", ROOT / "docs" / "reproducing.md"
COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line}") for page in (HOW_TO, REPRODUCING) for line in command_lines(page)
]
WITHOUT_SETTINGS = ("report",)


def write_shape(folder: Path) -> None:
    """What the page tells its reader to keep as `my-conf/model/mine.yaml`."""
    (folder / "my-conf" / "model").mkdir(parents=True)
    (shape,) = blocks(HOW_TO, "yaml")
    (folder / "my-conf" / "model" / "mine.yaml").write_text(shape, encoding="utf-8")


def test_the_strategy_is_compared_with_the_baseline(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", tmp_path / "outputs/train/mine/today")
    monkeypatch.chdir(tmp_path)
    (script,) = blocks(HOW_TO, "python")
    Path("tolerant.py").write_text(script, encoding="utf-8")
    runpy.run_path("tolerant.py", run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    found = {}
    for line in printed:
        name, rate = re.match(r"(.+?) +([\d.]+) tokens a pass, [\d.]+x, [\d.]+ nats a token", line).groups()  # type: ignore[union-attr]
        found[name] = float(rate), line.rpartition(", ")[2]
    assert list(found) == ["autoregressive", "tolerant, share 1", "tolerant, share 0.3", "tolerant, share 0"]
    assert found["autoregressive"] == (1.0, "the same text")
    assert found["tolerant, share 1"][1] == "the same text"
    assert 2 < found["tolerant, share 0"][0] <= 3


def test_the_shape_trains(run: Callable[..., int], small: list[str], tmp_path: Path) -> None:
    write_shape(tmp_path)
    data = [setting for setting in small if setting.startswith("data")]
    quick = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "scheduler.num_warmup_steps=0"]
    quick += ["callbacks=no_monitor", "data.batch_size=2", "data.num_val_batches=1"]
    line = next(line.values[0] for line in COMMANDS if "--config-dir" in str(line.values[0]))
    assert run(*shlex.split(str(line))[1:], *data, *quick, "hydra.run.dir=run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # 96 wide, 12 layers of grouped-query attention and SwiGLU, norms, a tied embedding of 300 padded to 320.
    layer = 96 * 96 * 2 + 96 * 32 * 2 + 3 * 96 * 256 + 2 * 96
    assert result["model"]["num_parameters_backbone"] == 320 * 96 + 12 * layer + 96


@pytest.mark.parametrize("line", COMMANDS)
def test_command_composes(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shape(tmp_path)
    program, command, *arguments = shlex.split(line)
    assert program == "recyclegpt"
    if command in WITHOUT_SETTINGS:
        return
    if arguments[0] == "--config-dir":
        arguments = [f"hydra.searchpath=[file://{tmp_path / arguments[1]}]", *arguments[2:]]
    assert compose_or_explain(command.replace("-", "_"), arguments, check_values=command != "train")
