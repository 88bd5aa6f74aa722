"""AdamW, and Muon for the matrices with AdamW for the rest, as one optimizer.

Both take named parameters, leave out frozen ones, and decay only matrices (not norms and other vectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

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
        lr: learning rate before the schedule.
        betas: decay of the two running means.
        weight_decay: decoupled decay of the matrices, embedding and LM head included.
        eps: added to the denominator.
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
