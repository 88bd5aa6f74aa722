"""`recyclegpt bench-training`: its document, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Run = Callable[..., int]
SHAPE = ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "vocab_size=64"]
STEP = ["batch_size=2", "row_length=16", "repetitions=2"]


def test_prints_a_table_and_one_json_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["output_dir=here", "optimizer=adamw", *SHAPE, *STEP]
    assert run("bench-training", *argv) == 0
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    assert json.loads(Path("here/training.json").read_text()) == document
    assert [row["variant"] for row in document["rows"]] == ["module", "none"]
    for row in document["rows"]:
        assert row["spread"][0] <= row["tokens_per_s"] <= row["spread"][1]
        assert row["tokens_per_s"] == pytest.approx(2 * 16 / row["step_s"])
        assert row["optimizer"] == "adamw"
        assert row["mfu"] is None
    assert document["module"]["time_beyond_flops"] == pytest.approx(
        document["module"]["time_share"] - document["module"]["flops_share"]
    )
    assert any(line.startswith("the module adds") for line in printed)


def test_names_every_mistake(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["batch_size=0", "dtype=int8", "device=tpu9"]
    assert run("bench-training", *wrong, "activation_checkpointing=-1") == 2
    printed = capsys.readouterr().err
    for word in ("batch_size: 0", "'tpu9'", "-1 is negative"):
        assert word in printed, printed
    assert run("bench-training", "compile=maybe") == 2
    assert "compile" in capsys.readouterr().err
    assert run("bench-training", "dtype=float16") == 2
    assert "training takes place in bfloat16 or float32" in capsys.readouterr().err
    assert run("bench-training", "row_length=999") == 2
    printed = capsys.readouterr().err
    assert "row_length: 999 exceeds model.context_length" in printed
    assert not Path("outputs").exists()


def test_says_what_to_do_when_memory_is_short(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("recyclegpt.commands.bench_training.measure_steps", full)
    assert run("bench-training", *SHAPE, *STEP) == 1
    told = capsys.readouterr().err
    assert "batch_size=2 rows of 16" in told
    assert "activation_checkpointing=true" in told
    assert not Path("outputs").exists()


def test_says_what_to_do_when_a_cpu_has_too_little_memory(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench-training", *SHAPE, *STEP, f"batch_size={10**14}") == 1
    assert "the memory of cpu does not suffice" in capsys.readouterr().err


def test_other_errors_of_a_step_are_not_taken_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("recyclegpt.commands.bench_training.measure_steps", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run("bench-training", *SHAPE, *STEP)
