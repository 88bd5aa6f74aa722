"""The schedules at their edges."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from recyclegpt.errors import ConfigError
from recyclegpt.training.optimizer import constant, cosine, wsd


def make_optimizer() -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    return torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 4.0}])


def factor_at(step: int, make: Callable[..., LambdaLR], *settings: float) -> float:
    """Share of the full rate after this number of steps."""
    return float(make(make_optimizer(), *settings).lr_lambdas[0](step))


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (59, 1.0),
        (60, 1.0),
        (61, 0.98),
        (80, 0.6),
        (99, 0.22),
        (100, 0.2),
        (500, 0.2),
    ],
)
def test_wsd_at_its_edges(step: int, factor: float) -> None:
    assert factor_at(step, wsd, 100, 10, 0.4, 0.2) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),
        (9, 1.0),
        (10, 1.0),
        (55, 0.6),
        (99, 0.2 + 0.4 * (1 + math.cos(math.pi * 89 / 90))),
        (100, 0.2),
        (500, 0.2),
    ],
)
def test_cosine_at_its_edges(step: int, factor: float) -> None:
    assert factor_at(step, cosine, 100, 10, 0.2) == pytest.approx(factor)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("decay_fraction", [0.0, 0.3, 1.0])
def test_a_run_learns_from_its_first_step_to_its_last(num_steps: int, decay_fraction: float) -> None:
    factors = [factor_at(step, wsd, num_steps, 0, decay_fraction, 0.0) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0
    factors = [factor_at(step, cosine, num_steps, 0, 0.0) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize(
    ("scheduler", "factors"),
    [
        (
            lambda optimizer: wsd(optimizer, num_steps=4, num_warmup_steps=2, decay_fraction=0.5, floor=0.5),
            [0.5, 1, 1, 0.75, 0.5],
        ),
        (lambda optimizer: cosine(optimizer, num_steps=2, floor=0.0), [1, 0.5, 0, 0, 0]),
        (lambda optimizer: constant(optimizer, num_steps=4, num_warmup_steps=2), [0.5, 1, 1, 1, 1]),
    ],
)
def test_rates_of_all_groups_and_resume(scheduler, factors: list[float]) -> None:
    optimizer = make_optimizer()
    schedule = scheduler(optimizer)
    for step, factor in enumerate(factors):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([factor, 4 * factor])
        if step == 2:
            file = io.BytesIO()
            torch.save({"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            optimizer = make_optimizer()
            schedule = scheduler(optimizer)
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
        optimizer.step()
        schedule.step()


def test_what_cannot_work_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        wsd(make_optimizer(), num_steps=10, decay_fraction=1.5, floor=2.0)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "scheduler.decay_fraction",
        "scheduler.floor",
    ]
    with pytest.raises(ConfigError, match="do not fit into the run's 10"):
        wsd(make_optimizer(), num_steps=10, num_warmup_steps=6, decay_fraction=0.5)
    for make in (cosine, constant):
        for num_warmup_steps in (-1, 11):
            with pytest.raises(ConfigError, match=f"num_warmup_steps: {num_warmup_steps}"):
                make(make_optimizer(), num_steps=10, num_warmup_steps=num_warmup_steps)
