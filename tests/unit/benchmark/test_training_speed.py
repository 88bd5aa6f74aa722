"""The arithmetic of training speeds, and that what is timed is a training step."""

from __future__ import annotations

import functools

import pytest
import torch

from recyclegpt.benchmark.training_speed import (
    PHASES,
    StepConfig,
    _Steps,
    measure_steps,
    module_shares,
)
from recyclegpt.models import ModelConfig, RecycleConfig
from recyclegpt.training import MuonAdamW, adamw
from recyclegpt.training.step_cost import flops_per_token

SHAPE = ModelConfig(50, 16, num_layers=2, hidden_size=16, num_heads=2)
CPU = torch.device("cpu")
ADAMW = functools.partial(adamw, lr=1e-3)


def test_a_row_is_medians_and_their_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([9.0, 9.0, 9.0, 1.0, 2.0, 4.0])  # a warm-up of three
    split = {"forward": 0.25, "backward": 0.5, "optimizer": 0.25}
    monkeypatch.setattr(
        _Steps, "run", lambda _: {name: share * now for now in [next(steps)] for name, share in split.items()}
    )
    monkeypatch.setattr("recyclegpt.benchmark.training_speed.peak_flops", lambda _: 9600.0)
    config = StepConfig(batch=2, row_length=8, optimizer=ADAMW, accumulate=3, repetitions=3)
    row = measure_steps(SHAPE, RecycleConfig(1), config, CPU)
    assert row["step_s"] == 2.0
    assert [row[f"{name}_s"] for name in PHASES] == [0.5, 1.0, 0.5]
    assert row["tokens_per_s"] == 2 * 8 * 3 / 2.0
    assert row["spread"] == [12.0, 48.0]
    assert row["mfu"] == pytest.approx(24.0 * row["flops_per_token"] / 9600.0)


def test_the_module_is_compared_with_its_operations() -> None:
    rows = ({"flops_per_token": flops, "step_s": seconds} for flops, seconds in ((120.0, 1.5), (100.0, 1.2)))
    assert module_shares(*rows) == pytest.approx({"flops_share": 0.2, "time_share": 0.25, "time_beyond_flops": 0.05})


def test_a_step_trains() -> None:
    config = StepConfig(4, 16, functools.partial(MuonAdamW, lr=1e-2), dtype=torch.float32, accumulate=2)
    steps = _Steps(SHAPE, RecycleConfig(1), config, CPU)
    losses = []
    steps.batches = steps.batches[:1].expand_as(steps.batches)
    for _ in range(12):
        steps.run()
        losses.append(float(steps.last_loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(parameter.grad is None for parameter in steps.model.parameters())


def test_measures_with_and_without_the_module() -> None:
    config = StepConfig(2, 12, ADAMW, dtype=torch.bfloat16, repetitions=2, activation_checkpointing=1)
    with_module, without = (measure_steps(SHAPE, RecycleConfig(depth), config, CPU) for depth in (2, 0))
    for row, depth in ((with_module, 2), (without, 0)):
        assert row["flops_per_token"] == flops_per_token(SHAPE, RecycleConfig(depth), 12)
        assert row["recycle_num_layers"] == depth
        assert 0 < row["spread"][0] <= row["spread"][1]
