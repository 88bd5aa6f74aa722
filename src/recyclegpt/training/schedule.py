"""Learning-rate schedules: linear warm-up, then `wsd`, `cosine` or `constant`.

All of them multiply the rates of every group by the same factor, and raise a ConfigError that names every value that
cannot work. `num_steps` are the optimizer steps of the whole run,
`num_warmup_steps` those of the rise (the last of them has the full rate; the first already learns, since a rate of 0
would waste its batch), and `floor` is the share of the full rate left at the end and kept from then on.

The length of the run is an argument. Asking the trainer for it (`estimated_stepping_batches`) would build the data
loader early and so keep its saved state from being restored (lightning#20550).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recyclegpt.errors import ConfigError


def wsd(
    optimizer: Optimizer, num_steps: int, num_warmup_steps: int = 0, decay_fraction: float = 0.4, floor: float = 0.0
) -> LambdaLR:
    """Warm-up, stable, decay (arXiv 2404.06395): linear up, constant, linear down over the last `decay_fraction`."""
    num_decay_steps = round(decay_fraction * num_steps)

    def factor(step: int) -> float:
        if step <= num_steps - num_decay_steps or not num_decay_steps:
            return 1.0
        return floor + (1 - floor) * max(0, num_steps - step) / num_decay_steps

    return _schedule(optimizer, factor, num_steps, num_warmup_steps, num_decay_steps, floor)


def cosine(optimizer: Optimizer, num_steps: int, num_warmup_steps: int = 0, floor: float = 0.1) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `floor` at `num_steps` (arXiv 1608.03983, without restarts)."""

    def factor(step: int) -> float:
        if step >= num_steps:
            return floor
        progress = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return _schedule(optimizer, factor, num_steps, num_warmup_steps, floor=floor)


def constant(optimizer: Optimizer, num_steps: int, num_warmup_steps: int = 0) -> LambdaLR:
    """Linear warm-up, then the full rate to the end."""
    return _schedule(optimizer, lambda _: 1.0, num_steps, num_warmup_steps)


def _schedule(
    optimizer: Optimizer,
    factor: Callable[[int], float],
    num_steps: int,
    num_warmup_steps: int,
    num_decay_steps: int = 0,
    floor: float = 0.0,
) -> LambdaLR:
    """The warm-up, and from its end the share of the full rate that `factor` gives for the steps already taken."""
    problems = []
    if not 0 <= num_decay_steps <= num_steps:
        problems.append(f"scheduler.decay_fraction: {num_decay_steps} of {num_steps} steps; give a share, 0 to 1")
    elif num_warmup_steps < 0 or num_warmup_steps + num_decay_steps > num_steps:
        problems.append(
            f"scheduler.num_warmup_steps: {num_warmup_steps} steps of warm-up and {num_decay_steps} of decay do not "
            f"fit into the run's {num_steps}; lower them or train longer"
        )
    if not 0 <= floor <= 1:
        problems.append(f"scheduler.floor: {floor} is not in 0 to 1; it is a share of the learning rate")
    if problems:
        raise ConfigError(problems)
    return LambdaLR(optimizer, lambda step: (step + 1) / num_warmup_steps if step < num_warmup_steps else factor(step))
