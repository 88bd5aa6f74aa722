"""AdamW, and Muon for the matrices with AdamW for the rest, as one optimizer; schedules of the learning rate.

Both optimizers take named parameters, leave out frozen ones, and decay only matrices (not norms and other vectors).

A schedule is a linear warm-up, then `wsd`, `cosine` or `constant`. All of them multiply the rates of every group by the
same factor, and raise a ConfigError that names every value that cannot work. `num_steps` are the optimizer steps of the
whole run, `num_warmup_steps` those of the rise (the last of them has the full rate; the first already learns, since a
rate of 0 would waste its batch), and `floor` is the share of the full rate left at the end and kept from then on. The
length of the run is an argument. Asking the trainer for it (`estimated_stepping_batches`) would build the data loader
early and so keep its saved state from being restored (lightning#20550).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recyclegpt.errors import ConfigError

Named = Iterable[tuple[str, Parameter]]
FUSED_DEVICES = ("cpu", "cuda")
PARTS: dict[str, Callable[..., Optimizer]] = {"muon": torch.optim.Muon, "adamw": torch.optim.AdamW}


def adamw(
    named_parameters: Named,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    backbone_lr: float | None = None,
) -> torch.optim.AdamW:
    """`torch.optim.AdamW` with two groups, `decay` (matrices) and `no_decay` (norms, vectors); four with `backbone_lr`.

    Args:
        named_parameters: as `module.named_parameters()` yields them; a tied weight counts once.
        weight_decay: decoupled decay of the matrices, embedding and LM head included.
        backbone_lr: learning rate of backbone and LM head, lower for a pretrained one that should change little; None:
            `lr`.

    Raises:
        ConfigError: naming every value that cannot work.
    """
    parameters = _trainable(named_parameters)
    _check(parameters, [*betas], lr=lr, weight_decay=weight_decay, eps=eps, backbone_lr=backbone_lr)
    groups = [
        {"name": f"{prefix}{name}", "params": weights, "weight_decay": decay, "lr": rate}
        for prefix, rate, part in _by_rate(parameters, lr, backbone_lr)
        for name, decay, weights in (
            ("decay", weight_decay, [weight for _, weight in part if weight.ndim >= 2]),
            ("no_decay", 0.0, [weight for _, weight in part if weight.ndim < 2]),
        )
        if weights
    ]
    fused = all(weight.device.type in FUSED_DEVICES for _, weight in parameters) or None
    beta1, beta2 = betas  # a list where they come from YAML
    return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=eps, fused=fused)


class MuonAdamW(Optimizer):
    """Muon on the matrices of the layers and of the fold, AdamW on embedding, LM head, norms and vectors.

    One optimizer, because Lightning's automatic optimisation refuses two. The updates are the library's: every step
    hands each kind of group to `torch.optim.Muon` or `torch.optim.AdamW`, which work on this optimizer's groups and
    state, so that schedulers see all groups and one state dict holds everything.

    An update of Muon is scaled to the root mean square of one of AdamW (Moonlight, arXiv 2502.16982), so the same
    learning rate and decay serve both.

    Args:
        named_parameters, weight_decay, backbone_lr: as in `adamw`.
        lr, betas, eps: of the AdamW groups.
        muon_lr: learning rate of the Muon group; None: `lr`.
        momentum: Muon's decay of the running mean of gradients.

    Raises:
        ConfigError: naming every value that cannot work.
    """

    def __init__(
        self,
        named_parameters: Named,
        lr: float,
        muon_lr: float | None = None,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
        backbone_lr: float | None = None,
    ) -> None:
        parameters = _trainable(named_parameters)
        rates = {"lr": lr, "muon_lr": muon_lr, "weight_decay": weight_decay, "eps": eps, "backbone_lr": backbone_lr}
        _check(parameters, [*betas, momentum], **rates)
        parts: dict[str, Optimizer] = {}
        if matrices := [(name, parameter) for name, parameter in parameters if takes_muon(name, parameter)]:
            parts["muon"] = torch.optim.Muon(
                [
                    {"name": f"{prefix}muon", "params": [weight for _, weight in part], "lr": rate}
                    for prefix, rate, part in _by_rate(matrices, lr if muon_lr is None else muon_lr, backbone_lr)
                ],
                weight_decay=weight_decay,
                momentum=momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        if others := [(name, parameter) for name, parameter in parameters if not takes_muon(name, parameter)]:
            parts["adamw"] = adamw(others, lr, betas, weight_decay, eps, backbone_lr)
        super().__init__([group | {"kind": kind} for kind, part in parts.items() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        `closure`, if given, computes loss and gradients and is called once; its loss is returned.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for kind, make in PARTS.items():
            # Made anew, because loading replaces groups and state.
            if groups := [group for group in self.param_groups if group["kind"] == kind]:
                part = make(groups)
                part.state = self.state
                part.step()
        return loss


def takes_muon(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix between hidden states: neither a vector nor part of an embedding or a head."""
    return parameter.ndim == 2 and not any("embed" in part or part.endswith("head") for part in name.split("."))


def _trainable(named_parameters: Named) -> list[tuple[str, Parameter]]:
    return list({id(weight): (name, weight) for name, weight in named_parameters if weight.requires_grad}.values())


def _by_rate(
    parameters: list[tuple[str, Parameter]], lr: float, backbone_lr: float | None
) -> list[tuple[str, float, list[tuple[str, Parameter]]]]:
    """(Prefix of the groups' names, learning rate, parameters); backbone and LM head apart if they have their own."""
    if backbone_lr is None:
        return [("", lr, parameters)]
    module = [(name, weight) for name, weight in parameters if name.startswith("recyclable.")]
    rest = [(name, weight) for name, weight in parameters if not name.startswith("recyclable.")]
    return [part for part in (("", lr, module), ("backbone_", backbone_lr, rest)) if part[2]]


def _check(parameters: list[tuple[str, Parameter]], averages: list[float], **rates: float | None) -> None:
    problems = [
        f"optimizer.{name}: {value} is not a finite number >= 0"
        for name, value in rates.items()
        if value is not None and not (math.isfinite(value) and value >= 0)
    ]
    problems += [f"optimizer: betas or momentum {beta} is not in [0, 1)" for beta in averages if not 0 <= beta < 1]
    if not parameters:
        problems.append("optimizer: the model has no trainable parameter; unfreeze backbone or module")
    if problems:
        raise ConfigError(problems)


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
