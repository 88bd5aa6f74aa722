"""AdamW, and Muon for the matrices with AdamW for the rest, as one optimizer.

Both take named parameters, leave out frozen ones, and decay only matrices (not norms and other vectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from recyclegpt.errors import ConfigError

Named = Iterable[tuple[str, Parameter]]

FUSED_DEVICES = ("cpu", "cuda")
MUON_LR_RULES = ("match_rms_adamw", "original")


def adamw(
    named_parameters: Named,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    fused: bool | None = None,
    backbone_lr: float | None = None,
) -> torch.optim.AdamW:
    """`torch.optim.AdamW` with two groups, `decay` (matrices) and `no_decay` (norms, vectors); four with `backbone_lr`.

    Args:
        named_parameters: as `module.named_parameters()` yields them; a tied weight counts once.
        lr: learning rate before the schedule.
        betas: decay of the two running means.
        weight_decay: decoupled decay of the matrices, embedding and LM head included.
        eps: added to the denominator.
        fused: one kernel for the whole step; None: wherever the parameters' device has it.
        backbone_lr: learning rate of backbone and LM head, lower for a pretrained one that should change little; None:
            `lr`.

    Raises:
        ConfigError: naming every value that cannot work.
    """
    parameters = _trainable(named_parameters)
    if problems := _problems(parameters, lr, betas, weight_decay, eps, backbone_lr):
        raise ConfigError(problems)
    groups = [
        {**group, "lr": rate}
        for prefix, rate, part in _by_rate(parameters, lr, backbone_lr)
        for group in _decay_groups(part, weight_decay, prefix)
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_fused(parameters, fused))


class MuonAdamW(Optimizer):
    """Muon on the matrices of the layers and of the fold, AdamW on embedding, LM head, norms and vectors.

    One optimizer, because Lightning's automatic optimisation refuses two. The updates are the library's: every step
    hands each kind of group to `torch.optim.Muon` or `torch.optim.AdamW`, which work on this optimizer's groups and
    state, so that schedulers see all groups and one state dict holds everything.

    With `adjust_lr_fn="match_rms_adamw"` (Moonlight, arXiv 2502.16982) an update of Muon has the root mean square of
    one of AdamW, so the same learning rate and decay serve both; `"original"` is Keller Jordan's scale
    (https://kellerjordan.github.io/posts/muon/), which wants a `muon_lr` of its own, around 0.02.

    Args:
        named_parameters, weight_decay, fused, backbone_lr: as in `adamw`.
        lr, betas, eps: of the AdamW groups.
        muon_lr: learning rate of the Muon group; None: `lr`.
        momentum: Muon's decay of the running mean of gradients.
        nesterov: whether Muon looks ahead by one gradient.
        num_newton_schulz_steps: iterations of Muon's orthogonalisation.
        adjust_lr_fn: how Muon's learning rate grows with a matrix's shape.

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
        nesterov: bool = True,
        num_newton_schulz_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        fused: bool | None = None,
        backbone_lr: float | None = None,
    ) -> None:
        parameters = _trainable(named_parameters)
        problems = _problems(parameters, lr, betas, weight_decay, eps, backbone_lr)
        if muon_lr is not None and not _is_finite(muon_lr):
            problems.append(f"optimizer.muon_lr: {muon_lr} is not a finite number >= 0; null takes lr")
        if not 0 <= momentum < 1:
            problems.append(f"optimizer.momentum: {momentum} is not in [0, 1)")
        if not 1 <= num_newton_schulz_steps < 100:
            problems.append(f"optimizer.num_newton_schulz_steps: {num_newton_schulz_steps} is not in 1 to 99")
        if adjust_lr_fn not in MUON_LR_RULES:
            problems.append(f"optimizer.adjust_lr_fn: {adjust_lr_fn!r} is unknown; choose {' or '.join(MUON_LR_RULES)}")
        if problems:
            raise ConfigError(problems)

        matrices = [(name, parameter) for name, parameter in parameters if takes_muon(name, parameter)]
        others = [(name, parameter) for name, parameter in parameters if not takes_muon(name, parameter)]
        self._parts: dict[str, Optimizer] = {}
        rate = lr if muon_lr is None else muon_lr
        if matrices:
            self._parts["muon"] = torch.optim.Muon(
                [
                    {"name": f"{prefix}muon", "params": [weight for _, weight in part], "lr": own}
                    for prefix, own, part in _by_rate(matrices, rate, backbone_lr)
                ],
                lr=rate,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=num_newton_schulz_steps,
                adjust_lr_fn=adjust_lr_fn,
            )
        if others:
            self._parts["adamw"] = torch.optim.AdamW(
                [
                    {**group, "lr": own}
                    for prefix, own, part in _by_rate(others, lr, backbone_lr)
                    for group in _decay_groups(part, weight_decay, f"{prefix}adamw_")
                ],
                lr=lr,
                betas=(betas[0], betas[1]),
                eps=eps,
                fused=_fused(others, fused),
            )
        groups = [dict(group, kind=kind) for kind, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, defaults={})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and state from `load_state_dict`, unpickling or a copy."""
        super().__setstate__(state)
        # An optimizer pickles and copies only its groups and state; the parts are made again from the groups.
        if "_parts" not in self.__dict__:
            self._parts = {}
        makers: dict[str, Callable[..., Optimizer]] = {"muon": torch.optim.Muon, "adamw": torch.optim.AdamW}
        for kind in dict.fromkeys(group["kind"] for group in self.param_groups):
            if kind not in self._parts:
                self._parts[kind] = makers[kind]([dict(group) for group in self.param_groups if group["kind"] == kind])
            # A checkpoint of another torch release may lack a setting that this one's step reads.
            for group in self.param_groups:
                if group["kind"] == kind:
                    for name, value in self._parts[kind].defaults.items():
                        group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        `closure`, if given, computes loss and gradients and is called once; its loss is returned.
        """
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kind, part in self._parts.items():
            # Loading replaces groups and state, and a scheduler writes into the groups, so link them at every step.
            part.param_groups = [group for group in self.param_groups if group["kind"] == kind]
            part.state = self.state
            part.step()
        return loss


def takes_muon(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix between hidden states: neither a vector nor part of an embedding or a head."""
    return parameter.ndim == 2 and not any("embed" in part or part.endswith("head") for part in name.split("."))


def _trainable(named_parameters: Named) -> list[tuple[str, Parameter]]:
    seen: dict[int, tuple[str, Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            seen.setdefault(id(parameter), (name, parameter))
    return list(seen.values())


def _by_rate(
    parameters: list[tuple[str, Parameter]], lr: float, backbone_lr: float | None
) -> list[tuple[str, float, list[tuple[str, Parameter]]]]:
    """(Prefix of the groups' names, learning rate, parameters); backbone and LM head apart if they have their own."""
    if backbone_lr is None:
        return [("", lr, parameters)]
    module = [(name, weight) for name, weight in parameters if name.startswith("recyclable.")]
    rest = [(name, weight) for name, weight in parameters if not name.startswith("recyclable.")]
    return [part for part in (("", lr, module), ("backbone_", backbone_lr, rest)) if part[2]]


def _decay_groups(
    parameters: list[tuple[str, Parameter]], weight_decay: float, prefix: str = ""
) -> list[dict[str, Any]]:
    """A group of matrices, which decay, and one of vectors, which do not; an empty one is left out."""
    decay = [parameter for _, parameter in parameters if parameter.ndim >= 2]
    no_decay = [parameter for _, parameter in parameters if parameter.ndim < 2]
    groups = [
        {"name": f"{prefix}decay", "params": decay, "weight_decay": weight_decay},
        {"name": f"{prefix}no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _fused(parameters: list[tuple[str, Parameter]], wanted: bool | None) -> bool | None:
    if wanted is not None:
        return wanted
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for _, p in parameters) or None


def _is_finite(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _problems(
    parameters: list[tuple[str, Parameter]],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
    backbone_lr: float | None,
) -> list[str]:
    numbers = {"lr": lr, "weight_decay": weight_decay, "eps": eps, "backbone_lr": backbone_lr}
    problems = [
        f"optimizer.{name}: {value} is not a finite number >= 0"
        for name, value in numbers.items()
        if value is not None and not _is_finite(value)
    ]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        problems.append(f"optimizer.betas: {list(betas)} are not two numbers in [0, 1)")
    if not parameters:
        problems.append("optimizer: the model has no trainable parameter; unfreeze backbone or module")
    return problems
