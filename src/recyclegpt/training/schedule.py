"""Learning-rate schedules: linear warm-up, then `wsd`, `cosine` or `constant`.

All of them multiply the rates of every group by the same factor. `step` counts optimizer steps already taken: 0 is the
rate of the first one. `num_steps` are the optimizer steps of the whole run, `num_warmup_steps` those of the rise (the
last of them has the full rate), and `floor` is the share of the full rate left at the end and kept from then on.

The length of the run is an argument. Asking the trainer for it (`estimated_stepping_batches`) would build the data
loader early and so keep its saved state from being restored (lightning#20550).
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recyclegpt.errors import ConfigError


def wsd(
    optimizer: Optimizer, num_steps: int, num_warmup_steps: int = 0, decay_fraction: float = 0.4, floor: float = 0.0
) -> LambdaLR:
    """Warm-up, stable, decay (arXiv 2404.06395): linear up, constant, linear down over the last `decay_fraction`.

    Raises:
        ConfigError: naming every value that cannot work.
    """
    problems = _problems(num_steps, num_warmup_steps, floor)
    if not 0 <= decay_fraction <= 1:
        problems.append(f"scheduler.decay_fraction: {decay_fraction} is not in 0 to 1")
    elif not problems and num_warmup_steps + (num_decay_steps := round(decay_fraction * num_steps)) > num_steps:
        problems.append(
            f"scheduler.num_warmup_steps: {num_warmup_steps} steps of warm-up and {num_decay_steps} of decay "
            f"(decay_fraction={decay_fraction}) are more than the run's {num_steps}; lower one or train longer"
        )
    if problems:
        raise ConfigError(problems)
    return LambdaLR(optimizer, lambda step: wsd_factor(step, num_steps, num_warmup_steps, decay_fraction, floor))


def cosine(optimizer: Optimizer, num_steps: int, num_warmup_steps: int = 0, floor: float = 0.1) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `floor` at `num_steps` (arXiv 1608.03983, without restarts).

    Raises:
        ConfigError: naming every value that cannot work.
    """
    if problems := _problems(num_steps, num_warmup_steps, floor):
        raise ConfigError(problems)
    return LambdaLR(optimizer, lambda step: cosine_factor(step, num_steps, num_warmup_steps, floor))


def constant(optimizer: Optimizer, num_steps: int, num_warmup_steps: int = 0) -> LambdaLR:
    """Linear warm-up, then the full rate to the end.

    Raises:
        ConfigError: naming every value that cannot work.
    """
    if problems := _problems(num_steps, num_warmup_steps, floor=1.0):
        raise ConfigError(problems)
    return LambdaLR(optimizer, lambda step: warmup_factor(step, num_warmup_steps))


def warmup_factor(step: int, num_warmup_steps: int) -> float:
    """Rise in equal parts to 1; the first step already learns, since a rate of 0 would waste its batch."""
    return min(1.0, (step + 1) / num_warmup_steps) if num_warmup_steps else 1.0


def wsd_factor(step: int, num_steps: int, num_warmup_steps: int, decay_fraction: float, floor: float) -> float:
    """Share of the full rate at `step` of `wsd`."""
    if step < num_warmup_steps:
        return warmup_factor(step, num_warmup_steps)
    num_decay_steps = round(decay_fraction * num_steps)
    if step <= num_steps - num_decay_steps:
        return 1.0
    return floor + (1 - floor) * max(0, num_steps - step) / num_decay_steps if num_decay_steps else 1.0


def cosine_factor(step: int, num_steps: int, num_warmup_steps: int, floor: float) -> float:
    """Share of the full rate at `step` of `cosine`."""
    if step < num_warmup_steps:
        return warmup_factor(step, num_warmup_steps)
    if step >= num_steps:
        return floor
    progress = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def _problems(num_steps: int, num_warmup_steps: int, floor: float) -> list[str]:
    problems = []
    if num_steps < 1:
        problems.append(f"the run has {num_steps} optimizer steps; it needs at least one")
    if num_warmup_steps < 0:
        problems.append(f"scheduler.num_warmup_steps: {num_warmup_steps} is negative; 0 means no warm-up")
    elif num_warmup_steps > num_steps >= 1:
        problems.append(
            f"scheduler.num_warmup_steps: {num_warmup_steps} is more than the run's {num_steps} optimizer steps; "
            "lower it or train longer"
        )
    if not 0 <= floor <= 1:
        problems.append(f"scheduler.floor: {floor} is not in 0 to 1; it is a share of the learning rate")
    return problems
