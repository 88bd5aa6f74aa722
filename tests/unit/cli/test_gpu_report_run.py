"""How long the training run of a GPU report is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recyclegpt.cli.gpu_report_run import EPOCH_S, SHORTEST_S, START_S, Planned, batches_that_fit, plan_run
from recyclegpt.evaluation.flops import flops_per_token
from recyclegpt.models import ModelConfig, RecycleConfig

SETTINGS = ("experiment=tiny_cpu", "model=gpt_125m", "trainer.max_epochs=4", "data.batch_size=32")
CORPUS = {"vocab_size": 16384}


def measured(tokens_per_s: float, num_layers: int = 2) -> dict[str, Any]:
    shape = ModelConfig(
        16384, context_length=1024, num_layers=12, hidden_size=768, num_heads=12, intermediate_size=2048
    )
    flops = flops_per_token(shape, RecycleConfig(num_layers=num_layers), 1024).total
    row = {"recycle_num_layers": num_layers, "tokens_per_s": tokens_per_s, "flops_per_token": flops}
    return {"rows": [{"recycle_num_layers": 0, "tokens_per_s": 1.0, "flops_per_token": 1.0}, row]}


def plan(folder: Path, rate: dict[str, Any] | None, seconds: float = 360.0, code: str = "a") -> Planned:
    return plan_run(folder, code, SETTINGS, CORPUS, rate, seconds)


def batches(planned: Planned) -> int:
    (length,) = (part for part in planned.argv if part.startswith("trainer.limit_train_batches="))
    return int(length.partition("=")[2])


def test_the_steps_fit_into_the_time(tmp_path: Path) -> None:
    planned = plan(tmp_path, measured(512 * 1024.0))  # 16 batches a second
    steps = 4 * batches(planned)
    needed = START_S + 4 * EPOCH_S + steps / 16
    assert 0.8 * 360 < needed < 360
    assert planned.seconds == 360
    assert "524,288 tokens/s" in planned.note
    assert planned.argv[:2] == ("train", "experiment=tiny_cpu")
    assert "resume=auto" in planned.argv


def test_a_step_that_costs_more_is_done_less_often(tmp_path: Path) -> None:
    """The benchmark's row is of another module than the run's: operations count, not tokens."""
    deep = batches(plan(tmp_path / "deep", measured(512 * 1024.0, num_layers=12)))
    assert deep > 1.3 * batches(plan(tmp_path / "equal", measured(512 * 1024.0)))


def test_a_plan_is_kept_so_that_its_run_can_go_on(tmp_path: Path) -> None:
    first = plan(tmp_path, measured(512 * 1024.0))
    again = plan(tmp_path, measured(99.0), seconds=310.0)
    assert (again.argv, again.folder, again.seconds) == (first.argv, first.folder, first.seconds)
    assert again.note.startswith(first.note)
    assert "planned by an earlier start" in again.note
    other = plan(tmp_path, measured(512 * 1024.0), seconds=310.0, code="b")
    assert other.folder != first.folder
    assert batches(other) < batches(first)


def test_too_little_time_makes_no_plan(tmp_path: Path) -> None:
    planned = plan(tmp_path, measured(512 * 1024.0), seconds=SHORTEST_S - 1)
    assert planned.seconds >= SHORTEST_S
    assert not (tmp_path / "plan.json").exists()


def test_without_a_measured_speed_the_run_is_as_long_as_its_settings_say(tmp_path: Path) -> None:
    planned = plan(tmp_path, None)
    assert not [part for part in planned.argv if part.startswith("trainer.limit")]
    assert "not measured" in planned.note
    assert json.loads((tmp_path / "plan.json").read_text())["batches_an_epoch"] is None


@pytest.mark.parametrize("seconds", [0.0, 31.0])
def test_there_is_always_a_batch(seconds: float) -> None:
    assert batches_that_fit(seconds, 16.0, 4) == 1
