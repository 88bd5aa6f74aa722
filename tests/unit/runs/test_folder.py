"""Whose a run folder is, who may write in it, and where the run came from."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from recyclegpt.configuration.compose import config_hash, to_plain
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json
from recyclegpt.runs.folder import claim, git_state, read_provenance, write_provenance

BASE = {
    "name": "default",
    "seed": 1,
    "resume": "never",
    "model": {"num_layers": 2, "also": "${seed}"},
    "paths": {"output_dir": "/runs/a", "cache_dir": "???"},
    "logger": {"save_dir": "${paths.output_dir}"},
    "sweep": {"name": "adhoc", "tag": "${now:%S}"},
    "callbacks": {"checkpoint": {"dirpath": "${paths.output_dir}/checkpoints"}, "cache": "${paths.cache_dir}"},
}


def config(**changes):
    cfg = OmegaConf.create(BASE)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    OmegaConf.set_struct(cfg, True)
    return cfg


def test_the_hash_is_that_of_the_canonical_json():
    canonical = (
        '{"callbacks":{"cache":"<paths.cache_dir>","checkpoint":{"dirpath":"<paths.output_dir>/checkpoints"}},'
        '"model":{"also":1,"num_layers":2},"seed":1}'
    )
    assert config_hash(config()) == hashlib.sha256(canonical.encode()).hexdigest()[:16] == "039ab9e60bca29b5"


@pytest.mark.parametrize(
    "same",
    [
        {"name": "other"},
        {"resume": "auto"},
        {"paths__output_dir": "/runs/b"},
        {"paths__output_dir": "${hydra:runtime.output_dir}"},
        {"logger": {"_target_": "another"}},
        {"logger": None},
        {"sweep__tag": "x"},
        {"hydra": {"run": {"dir": "${nowhere}"}}},
    ],
    ids=str,
)
def test_where_a_run_is_kept_does_not_count(same):
    assert config_hash(config(**same)) == config_hash(config())


@pytest.mark.parametrize(
    "different",
    [
        {"seed": 2},
        {"model__num_layers": 3},
        {"model__num_layers": "2"},
        {"model__also": None},
        {"extra": 1},
        {"callbacks__checkpoint__dirpath": "/elsewhere"},
    ],
    ids=str,
)
def test_what_a_run_computes_counts(different):
    assert config_hash(config(**different)) != config_hash(config())


def test_the_order_of_keys_does_not_count():
    assert config_hash(OmegaConf.create(dict(reversed(BASE.items())))) == config_hash(config())


def test_hashing_leaves_the_config_alone():
    cfg = config()
    before = OmegaConf.to_yaml(cfg)
    config_hash(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    assert OmegaConf.is_struct(cfg)


def test_plain_is_resolved_and_without_hydra():
    cfg = config(paths__cache_dir="/cache", sweep__tag="now", hydra={"verbose": False})
    plain = to_plain(cfg)
    assert type(plain["model"]) is dict
    assert plain["model"] == {"num_layers": 2, "also": 1}
    assert plain["callbacks"]["checkpoint"]["dirpath"] == "/runs/a/checkpoints"
    assert "hydra" not in plain
    assert "hydra" in cfg


def test_a_folder_keeps_to_its_config(tmp_path):
    folder = tmp_path / "runs" / "new"
    assert claim(folder, "aaaa") is False
    assert folder.is_dir()
    write_json(folder / "provenance.json", {"config_hash": "aaaa"})
    assert claim(folder, "aaaa") is True
    with pytest.raises(ConfigError) as caught:
        claim(folder, "bbbb")
    assert all(word in str(caught.value) for word in (str(folder), "aaaa", "bbbb", "hydra.run.dir"))


def test_only_provenance_is_asked(tmp_path):
    write_json(tmp_path / "result.json", {"config_hash": "other"})
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 3")
    assert read_provenance(tmp_path) is None
    assert claim(tmp_path, "aaaa") is False


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_a_broken_provenance_is_refused_by_name(tmp_path, text):
    (tmp_path / "provenance.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"provenance\.json: .*config_hash"):
        claim(tmp_path, "aaaa")


def test_json_has_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": {"d": (1, math.nan)}, "e": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": None,
        "b": [None, None, 1.5],
        "c": {"d": [1, None]},
        "e": "ü",
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recyclegpt.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


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
