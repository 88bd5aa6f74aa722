"""The schedules at their edges, as pure functions and on an optimizer."""

from __future__ import annotations

import io
import math

import pytest
import torch

from recyclegpt.errors import ConfigError
from recyclegpt.training.schedule import constant, cosine, cosine_factor, wsd, wsd_factor


def make_optimizer() -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    return torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 4.0}])


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
    assert wsd_factor(step, 100, 10, decay_fraction=0.4, floor=0.2) == pytest.approx(factor)


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
    assert cosine_factor(step, 100, 10, floor=0.2) == pytest.approx(factor)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("decay_fraction", [0.0, 0.3, 1.0])
def test_a_run_learns_from_its_first_step_to_its_last(num_steps: int, decay_fraction: float) -> None:
    factors = [wsd_factor(step, num_steps, 0, decay_fraction, floor=0.0) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0
    factors = [cosine_factor(step, num_steps, 0, floor=0.0) for step in range(num_steps)]
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


def test_every_bad_value_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        wsd(make_optimizer(), num_steps=0, num_warmup_steps=-1, decay_fraction=1.5, floor=2.0)
    assert len(error.value.problems) == 4
    for word in ("optimizer steps", "num_warmup_steps", "decay_fraction", "floor"):
        assert word in str(error.value)
    with pytest.raises(ConfigError, match="more than the run's 10"):
        wsd(make_optimizer(), num_steps=10, num_warmup_steps=6, decay_fraction=0.5)
    with pytest.raises(ConfigError, match="num_warmup_steps: 11"):
        cosine(make_optimizer(), num_steps=10, num_warmup_steps=11)
    with pytest.raises(ConfigError, match="num_warmup_steps: 11"):
        constant(make_optimizer(), num_steps=10, num_warmup_steps=11)
