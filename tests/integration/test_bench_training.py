"""`recyclegpt bench training=true`: its document, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Run = Callable[..., int]
SHAPE = ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "bench.vocab_size=64"]
STEP = ["step.batch=2", "step.row_length=16", "step.repetitions=2"]


def test_prints_a_table_and_one_json_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["training=true", "bench.output=here", "step.profile=true", "step.optimizer=adamw", *SHAPE, *STEP]
    assert run("bench", *argv) == 0
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    assert json.loads(Path("here/training.json").read_text()) == document
    assert [row["variant"] for row in document["rows"]] == ["module", "none"]
    for row in document["rows"]:
        assert row["spread"][0] <= row["tokens_per_s"] <= row["spread"][1]
        assert row["tokens_per_s"] == pytest.approx(2 * 16 / row["step_s"])
        assert row["optimizer"] == "adamw"
        assert row["mfu"] is None, "nobody tells a processor's peak"
    assert document["module"]["time_beyond_flops"] == pytest.approx(
        document["module"]["time_share"] - document["module"]["flops_share"]
    )
    assert "aten::" in Path("here/profile_module.txt").read_text()
    assert any(line.startswith("the module adds") for line in printed)


def test_names_every_mistake(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "training=true", "bench.batch=4", "checkpoint=here") == 2
    told = capsys.readouterr().err
    assert "bench.batch: is about decoding" in told
    assert "checkpoint: training=true times random weights" in told
    assert run("bench", "step.batch=4") == 2
    assert "step.batch: is about training steps; add training=true" in capsys.readouterr().err
    wrong = ["step.batch=0", "step.optimizer=sgd", "step.dtype=int8", "step.compile=maybe", "device=tpu9"]
    assert run("bench", "training=true", *wrong, "step.activation_checkpointing=-1") == 2
    told = capsys.readouterr().err
    for word in ("step.batch: 0", "'sgd' is unknown", "'int8'", "'maybe' is neither", "'tpu9'", "-1 is neither"):
        assert word in told, told
    assert run("bench", "training=true", "step.row_length=999", "step.num_unrolled=2", "recycle=none") == 2
    told = capsys.readouterr().err
    assert "step.row_length: rows of 999 do not fit" in told
    assert "step.num_unrolled: 2 steps of no module" in told
    assert run("bench", "training=maybe") == 2
    assert "training: 'maybe' is neither true nor false" in capsys.readouterr().err
    assert run("bench", "training=true", "bench.output=[1]", "step.repetitions=few", "step.accumulate=true") == 2
    told = capsys.readouterr().err
    for key in ("bench.output", "step.repetitions", "step.accumulate"):
        assert key in told
    assert "Traceback" not in told
    assert not Path("outputs").exists()


def test_says_what_to_do_when_memory_is_short(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("recyclegpt.commands.bench_training.measure_steps", full)
    assert run("bench", "training=true", *SHAPE, *STEP) == 1
    told = capsys.readouterr().err
    assert "step.batch=2 rows of 16" in told
    assert "step.activation_checkpointing=true" in told
    assert not Path("outputs").exists()


@pytest.mark.parametrize("batch", [10**14, 10**17], ids=["no such memory", "no such number of bytes"])
def test_says_what_to_do_when_a_cpu_has_too_little_memory(
    batch: int, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", "training=true", "device=cpu", *SHAPE, *STEP, f"step.batch={batch}") == 1
    told = capsys.readouterr().err
    assert f"the memory of cpu does not suffice for step.batch={batch} rows of 16; lower step.batch" in told
    assert "Traceback" not in told


def test_other_errors_of_a_step_are_not_taken_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("recyclegpt.commands.bench_training.measure_steps", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run("bench", "training=true", *SHAPE, *STEP)
