"""Speed with a fake clock; progress is drawn by time, not by the number of batches."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from recyclegpt.callbacks import ProgressBar
from recyclegpt.callbacks.throughput import Throughput
from recyclegpt.data import Batch
from recyclegpt.hardware.device import peak_flops
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training.step_cost import flops_per_token

B, T = 2, 8
TAGS = {f"train/{name}" for name in ("tokens_per_s", "step_time_s", "data_wait_fraction", "memory_bytes", "mfu")}


class Run:
    """Plays the trainer, the module and the clock."""

    def __init__(self, every: int = 2, world_size: int = 1, accumulate: int = 1, global_step: int = 0) -> None:
        self.now = 1000.0
        self.throughput = Throughput(clock=lambda: self.now)
        self.trainer = SimpleNamespace(global_step=global_step, log_every_n_steps=every, world_size=world_size)
        self.accumulate = accumulate
        self.num_batches = 0
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.module = SimpleNamespace(device=torch.device("cpu"), model=None, log=self.log)
        self.throughput.on_train_start(self.trainer, self.module)

    def log(self, name: str, value: float, prog_bar: bool = False) -> None:
        if not self.logged or self.logged[-1][0] != self.trainer.global_step:
            self.logged.append((self.trainer.global_step, {}))
        assert name not in self.logged[-1][1], "logged twice at one step"
        self.logged[-1][1][name] = value

    def batch(self, wait_s: float, step_s: float, T: int = T) -> None:
        batch = Batch(torch.zeros(3, B, T, dtype=torch.long), None, {})
        self.now += wait_s
        self.throughput.on_train_batch_start(self.trainer, self.module, batch, 0)
        self.now += step_s
        self.num_batches += 1
        self.trainer.global_step += self.num_batches % self.accumulate == 0
        self.throughput.on_train_batch_end(self.trainer, self.module, None, batch, 0)

    def validate(self, seconds: float) -> None:
        self.throughput.on_validation_start(self.trainer, self.module)
        self.now += seconds


def test_rates_waits_and_totals() -> None:
    run = Run()
    run.batch(wait_s=50, step_s=3)  # the first batch's wait is start-up
    run.batch(wait_s=1, step_s=4)
    run.batch(wait_s=2, step_s=2)
    run.batch(wait_s=4, step_s=2)
    (first_step, first), (second_step, second) = run.logged
    assert (first_step, second_step) == (2, 4)
    assert first.keys() == second.keys() == TAGS
    assert first["train/tokens_per_s"] == 2 * B * T / 8
    assert first["train/step_time_s"] == 4
    assert first["train/data_wait_fraction"] == 1 / 8
    assert second["train/tokens_per_s"] == 2 * B * T / 10
    assert second["train/data_wait_fraction"] == 6 / 10
    run.throughput.on_train_end(run.trainer, run.module)
    run.now += 1000
    assert run.throughput.total_tokens == 4 * B * T
    assert run.throughput.total_seconds == 18
    restarted = Throughput(clock=lambda: 0.0)
    restarted.load_state_dict(run.throughput.state_dict())
    assert (restarted.total_tokens, restarted.total_seconds) == (4 * B * T, 18)


def test_validation_and_what_follows_it_do_not_count() -> None:
    run = Run()
    run.batch(wait_s=0, step_s=3)
    run.validate(500)
    run.batch(wait_s=70, step_s=2)
    run.validate(500)
    run.throughput.on_train_end(run.trainer, run.module)
    assert run.throughput.total_seconds == 5
    [(_, logged)] = run.logged
    assert logged["train/step_time_s"] == 2.5
    assert logged["train/data_wait_fraction"] == 0


def test_an_accumulated_step_is_one_step() -> None:
    run = Run(every=1, accumulate=3)
    for _ in range(6):
        run.batch(wait_s=0, step_s=2)
    assert [step for step, _ in run.logged] == [1, 2]
    assert all(logged["train/step_time_s"] == 6 for _, logged in run.logged)
    assert all(logged["train/tokens_per_s"] == B * T / 2 for _, logged in run.logged)


def test_a_restarted_run_counts_from_its_restart() -> None:
    run = Run(every=5, global_step=103)
    run.batch(wait_s=9, step_s=2)
    run.batch(wait_s=0, step_s=2)
    [(step, logged)] = run.logged
    assert step == 105
    assert logged["train/step_time_s"] == 2


def test_tokens_of_all_processes() -> None:
    run = Run(world_size=4)
    run.batch(wait_s=0, step_s=1)
    run.batch(wait_s=0, step_s=1)
    assert run.throughput.total_tokens == 4 * 2 * B * T
    assert run.logged[0][1]["train/tokens_per_s"] == 4 * B * T


def test_mfu_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    config, recycle = ModelConfig(vocab_size=32, hidden_size=16, num_heads=2, num_layers=1), RecycleConfig(num_layers=1)
    run = Run(world_size=2)
    run.module.model = RecycleGPT(config, recycle)
    monkeypatch.setattr("recyclegpt.callbacks.throughput.device_name", lambda _: "NVIDIA H100 80GB HBM3")
    run.batch(wait_s=0, step_s=1)
    run.batch(wait_s=0, step_s=1)
    expected = B * T * flops_per_token(config, recycle, T) / 989.4e12
    assert run.logged[0][1]["train/mfu"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", math.nan),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", math.nan),
    ],
)
def test_peaks_are_not_guessed(name: str, peak: float) -> None:
    assert peak_flops(name) == pytest.approx(peak, nan_ok=True)


def test_slow_steps_are_drawn_from_the_first_on_and_fast_ones_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("recyclegpt.callbacks.throughput.time.monotonic", lambda: now)
    drawn = {}
    for seconds in (20.0, 0.01):
        bar, drawn[seconds] = ProgressBar(), []
        for batch in range(1, 51):
            now += seconds
            if bar._should_update(batch, 50):
                drawn[seconds].append(batch)
    assert drawn[20.0] == list(range(1, 51))
    assert drawn[0.01] == [1, 50]
