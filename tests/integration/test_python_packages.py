"""A run on packages, from training to what is measured on those it never saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recyclegpt.data import PythonPackages

Run = Callable[..., int]


def test_what_was_held_out_is_found_again_or_the_change_is_told(
    run: Run, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = shutil.copytree(packages, tmp_path / "site-packages")
    held_out = PythonPackages([str(site)]).packages("val")
    data = ["data=python_packages", f"data.roots=[{site}]", "data.tokenizer.vocab_size=300", "data.num_workers=0"]
    assert run("train", "debug=smoke", "name=p", "callbacks=no_monitor", *data) == 0
    (folder,) = (tmp_path / "outputs/train/p").iterdir()
    assert json.loads((folder / "provenance.json").read_text())["held_out_packages"] == held_out
    trained = json.loads((folder / "result.json").read_text())["metrics"]
    capsys.readouterr()

    assert run("evaluate", f"checkpoint={folder}") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert found["val/loss_backbone"] == pytest.approx(trained["val/loss_backbone"], rel=1e-5)

    (site / "some0" / "part0.py").write_text("every_line_is_now_another_one = True\n" * 200)
    assert run("bench", f"checkpoint={folder}") == 2
    assert "has changed since" in capsys.readouterr().err
    # By its own tokenizer the model still reads what the corpus has become.
    assert run("evaluate", f"checkpoint={folder}", *data[:2]) == 0
