"""Environments and settings that people really have: each works, falls back and says so, or is one message."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from recyclegpt.checkpoints.file import list_checkpoints
from tests.chat_tokenizer import write_chat_tokenizer
from tests.small_run import OLDER

Run = Callable[..., int]
QUICK = ("callbacks=no_monitor", "trainer.max_epochs=1", "trainer.limit_train_batches=1")


def test_what_an_allocation_of_slurm_left_behind_is_ignored(
    run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "mine"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert run("train", *small, *QUICK, "hydra.run.dir=run") == 0
    assert "SLURM_NTASKS=4 is ignored" in Path("run/train.log").read_text()
    for name, value in {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert run("train", *small, *QUICK, "hydra.run.dir=two") == 2
    assert "SLURM_NTASKS=4 says that this is one of several processes" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_and_a_run_folder_in_it(
    run: Run, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECYCLEGPT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("train", *small, *QUICK, "hydra.run.dir=~/x") == 0
    assert "file/cache cannot be written (Not a directory): using " in capsys.readouterr().err
    assert (tmp_path / "home/x/result.json").is_file()


def test_a_working_folder_that_cannot_be_written_or_is_gone(
    run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outputs").touch()
    assert run("train", *small, *QUICK) == 2
    told = capsys.readouterr().err
    assert "outputs" in told
    assert "hydra.run.dir=FOLDER" in told
    gone = Path("gone").absolute()
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run("train", *small, *QUICK) == 2
    assert "the working folder: No such file or directory" in capsys.readouterr().err


def test_a_larger_run_says_why_it_is_new_and_how_to_go_on(
    run: Run, small: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    command = [*small, "callbacks=no_monitor", "trainer.limit_train_batches=2"]
    assert run("train", *command, "trainer.max_epochs=1") == 0
    capfd.readouterr()
    assert run("train", *command, "trainer.max_epochs=2", "resume=auto") == 0
    (told,) = (line for line in "".join(capfd.readouterr()).splitlines() if "resume=auto: " in line)
    assert "has another config, so this is a new one" in told
    resume = next(word for word in told.split() if word.startswith("resume=outputs"))
    assert run("train", *command, "trainer.max_epochs=2", resume, "hydra.run.dir=more") == 0
    assert json.loads(Path("more/result.json").read_text())["train"]["steps"] == 4
    assert "step_0000002" in json.loads(Path("more/provenance.json").read_text())["resumed_from"]


def test_a_run_without_validation_finishes(run: Run, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *small, "trainer.limit_val_batches=0", "hydra.run.dir=run") == 0
    assert "perplexity" not in capsys.readouterr().out
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "completed"
    assert result["metrics"]["val/ppl_backbone"] is None
    assert len(list_checkpoints(Path("run/checkpoints"))) == 1


def test_adapt_asks_for_a_corpus_and_training_names_it(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("adapt", "model.path=backbone") == 2
    assert "data: has to be chosen: data=NAME, one of hf_stream, python_stdlib" in capsys.readouterr().err
    assert run("train", *small, *QUICK, "hydra.run.dir=run") == 0
    assert f"data    text_files {small[-1].removeprefix('data.paths=')}: " in capsys.readouterr().err.replace("'", "")


def test_the_newest_run_is_named_and_decodes_without_a_module(
    run: Run, small: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run("train", *small, *QUICK, "recycle.num_layers=0", "name=plain") == 0
    capsys.readouterr()
    assert run("generate", "--prompt", "def alpha(", "decoding.strategy=verified") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("def alpha(")
    assert "the newest run of outputs/train: outputs/train/plain/" in printed.err
    assert "no recyclable module, so text is generated autoregressively" in caplog.text


def test_a_line_break_as_it_is_typed_ends_the_text(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", f"checkpoint={trained / 'run/checkpoints' / OLDER}", "decoding.max_new_tokens=40"]
    command += ["--prompt", "def alpha(beta, n=1):", "--no-prompt"]
    assert run(*command) == 0
    whole = capsys.readouterr().out
    assert run(*command, *shlex.split(r"""'decoding.stop=["\n"]'""")) == 0
    assert capsys.readouterr().out == whole.partition("\n")[0] + "\n"


def test_a_rank_left_behind_is_refused(
    run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"LOCAL_RANK": "1", "RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert run("train", *small, *QUICK, "hydra.run.dir=run") == 2
    assert "unset LOCAL_RANK WORLD_SIZE" in capsys.readouterr().err


def test_a_chat_saved_with_a_byte_order_mark_is_a_chat(
    run: Run, tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_chat_tokenizer(tiny_checkpoint())
    given = json.dumps({"messages": [{"role": "user", "content": "Why?"}]})
    Path("chat.json").write_text(given, encoding="utf-8-sig")
    command = ["generate", f"checkpoint={folder}", "decoding.max_new_tokens=8"]
    assert run(*command, "--chat", "Why?") == 0
    answer = capsys.readouterr().out
    assert run(*command, "--prompt-file", "chat.json") == 0
    assert capsys.readouterr().out == answer
