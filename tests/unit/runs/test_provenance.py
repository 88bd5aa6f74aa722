"""What a run writes down about its origin."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch

from recyclegpt.runs.folder import git_state, read_provenance, write_provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "--no-verify", "-m", "first")
    return tmp_path


def test_facts_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recyclegpt", "train"])
    write_provenance(tmp_path, "abc", data_fingerprint="d", rows=3)
    assert [file.name for file in tmp_path.iterdir()] == ["provenance.json"]
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert facts == read_provenance(tmp_path)
    assert facts["format"] == 1
    assert facts["config_hash"] == "abc"
    assert facts["argv"] == ["recyclegpt", "train"]
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["versions"].keys() >= {"lightning", "hydra-core", "omegaconf", "datasets", "tokenizers", "recyclegpt"}
    assert facts["num_threads"] == torch.get_num_threads()
    assert facts["cpu"]
    assert (facts["data_fingerprint"], facts["rows"]) == ("d", 3)
    assert datetime.fromisoformat(facts["started"]).tzinfo is not None
    assert facts["earlier_starts"] == []


def test_a_run_that_resumes_keeps_its_earlier_starts(tmp_path: Path) -> None:
    for number in range(3):
        write_provenance(tmp_path, "abc", start=number)
    written = read_provenance(tmp_path)
    assert written["start"] == 2
    assert [start["start"] for start in written["earlier_starts"]] == [0, 1]
    assert all("earlier_starts" not in start for start in written["earlier_starts"])


def test_git_clean_then_dirty(repository: Path) -> None:
    file = repository / "code.py"
    assert git_state(file) == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False, "diff_sha256": None}
    file.write_text("x = 2\n")
    state = git_state(file)
    assert state["dirty"] is True
    difference = subprocess.run(["git", "diff", "HEAD"], cwd=repository, check=True, capture_output=True).stdout
    assert state["diff_sha256"] == hashlib.sha256(difference).hexdigest()


def test_git_does_not_name_a_repository_that_holds_but_does_not_track_the_file(repository: Path) -> None:
    installed = repository / ".venv" / "code.py"
    installed.parent.mkdir()
    installed.write_text("x = 1\n")
    assert git_state(installed) is None


def test_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr("recyclegpt.runs.folder.subprocess.run", missing)
    assert git_state(repository / "code.py") is None
