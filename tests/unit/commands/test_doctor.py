"""What `recyclegpt doctor` finds in installations, machines and runs, each made for the test."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from recyclegpt.checkpoints.file import write_checkpoint
from recyclegpt.commands import doctor
from recyclegpt.commands.doctor import OK, PROBLEM, WARNING, Finding, disk, newest_run, versions
from recyclegpt.commands.main import main
from recyclegpt.kernels import build

Usage = namedtuple("Usage", "total used free")
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run folder as training leaves it, with two checkpoints."""

    def make(name: str = "train/default/2026-01-01_00-00-00", **result: Any) -> Path:
        run = tmp_path / "outputs" / name
        for step in (5, 10):
            write_checkpoint({"global_step": step, "weight": torch.ones(50)}, run / f"checkpoints/step_{step:07d}.ckpt")
        (run / "provenance.json").write_text("{}")
        if result:
            (run / "result.json").write_text(json.dumps(result))
        return run

    return make


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_sound_machine_and_run(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(status="completed")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["doctor", str(run.parents[2])]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (": completed", "intact", f"torch {metadata.version('torch')}"):
        assert words in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_is_a_problem_with_a_remedy(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(status="failed", error="RunError: the loss\nis not finite")
    (run / "checkpoints/step_0000010.ckpt").write_bytes(b"half")
    assert main(["doctor", str(run)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "failed: is not finite" in out
    assert "1. checkpoints: copy it again" in out
    assert main(["doctor", str(run), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    for finding in document["findings"]:
        assert bool(finding["remedy"]) == (finding["verdict"] != "ok")


@pytest.mark.parametrize(
    ("package", "version", "verdict", "words"),
    [
        ("lightning", "2.6.3", WARNING, "!=2.6.3"),
        ("torch", "2.10.0+cu130", WARNING, "outside of"),
        ("torch", None, PROBLEM, "not installed"),
    ],
)
def test_versions(package: str, version: str | None, verdict: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def installed(name: str) -> str:
        if name == package and version is None:
            raise metadata.PackageNotFoundError(name)
        return version if name == package and version is not None else real(name)

    monkeypatch.setattr(metadata, "version", installed)
    finding = by_name(versions())[package]
    assert finding.verdict == verdict
    assert words in finding.found


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise build.KernelsUnavailableError("no C++ compiler was found")

    monkeypatch.setattr(build, "load", fails)
    (finding,) = doctor.compiler()
    assert finding.verdict == WARNING
    assert "g++" in finding.remedy


@pytest.mark.parametrize(("free", "verdict"), [(9e9, OK), (4e9, WARNING), (1e3, WARNING)])
def test_free_space(free: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(1e12, 0, free))
    assert by_name(disk(tmp_path / "not" / "there"))["disk of runs"].verdict == verdict


def test_a_broken_installation_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: 1 / 0)
    assert main(["doctor", str(tmp_path)]) == 1


def test_the_newest_of_two_runs_is_unfinished(make_run: MakeRun, tmp_path: Path) -> None:
    old = make_run("sweeps/adhoc/today/seed-1", status="completed")
    for path in old.rglob("*"):
        os.utime(path, (1, 1))
    finding = by_name(newest_run(tmp_path))["newest run"]
    assert finding.verdict == OK
    new = make_run()
    finding = by_name(newest_run(tmp_path))["newest run"]
    assert finding.verdict == WARNING
    assert f"{new}: unfinished" in finding.found
    assert f"resume=auto, and hydra.run.dir={new} or" in finding.remedy
