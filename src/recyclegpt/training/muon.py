"""Muon (https://kellerjordan.github.io/posts/muon/) with the matrices of one shape updated together.

`torch.optim.Muon` walks from matrix to matrix: about twenty operations each, most of them too small to fill a GPU. Here
all layers' matrices of a shape are stacked, and each operation is one for the whole stack.

N matrices of a stack, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

STACK_ELEMENTS = 1 << 26
"""Most elements of a stack, so that its bf16 and fp32 copies take less than half a GB whatever the model."""


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with the same settings, groups and state, and on CUDA the same updates in batched products.

    On a CPU, where one matrix keeps all cores busy, and for weights spread over processes the updates are the library's
    own.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every matrix that has a gradient; `closure` computes the loss and the gradients, once."""
        if not batching_pays([weight for group in self.param_groups for weight in group["params"]]):
            done: float | None = super().step(closure)
            return done
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.step_batched()
        return loss

    @torch.no_grad()
    def step_batched(self) -> None:
        """The update in batched products, on any device."""
        for group in self.param_groups:
            for weights in _stacks(group["params"]):
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        grads = [weight.grad for weight in weights if weight.grad is not None]
        momenta = []
        for weight, grad in zip(weights, grads, strict=True):
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
            momenta.append(state["momentum_buffer"])
        lr, momentum = float(group["lr"]), group["momentum"]
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, momenta, momentum) if group["nesterov"] else momenta
        stack_NRC = torch.empty((len(weights), *weights[0].shape), dtype=torch.bfloat16, device=weights[0].device)
        torch._foreach_copy_(list(stack_NRC.unbind()), list(updates))
        del updates
        stack_NRC = orthogonalised(stack_NRC, group["ns_coefficients"], group["ns_steps"], group["eps"])
        stack_NRC = stack_NRC.to(weights[0].dtype)
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        rate = lr * _scale(group["adjust_lr_fn"], *weights[0].shape)
        torch._foreach_add_(weights, list(stack_NRC.unbind()), alpha=-rate)


def batching_pays(weights: list[Tensor]) -> bool:
    """Whether all lie whole on a GPU."""
    return all(weight.is_cuda and not isinstance(weight, DTensor) for weight in weights)


def orthogonalised(
    stack_NRC: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float = 1e-7
) -> Tensor:
    """The nearest semi-orthogonal matrices, about: a quintic Newton-Schulz iteration that draws all singular values
    towards 1. The stack itself is overwritten.
    """
    a, b, c = coefficients
    tall = stack_NRC.shape[1] > stack_NRC.shape[2]
    x = stack_NRC.mT if tall else stack_NRC
    x.div_(torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps))
    for _ in range(num_steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _stacks(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """Those that have a gradient, by shape, at most `STACK_ELEMENTS` at a time."""
    kinds: dict[tuple[torch.Size, torch.dtype, torch.device], list[Tensor]] = {}
    for weight in weights:
        if weight.grad is not None:
            kinds.setdefault((weight.shape, weight.dtype, weight.device), []).append(weight)
    for (shape, _, _), alike in kinds.items():
        at_once = max(1, STACK_ELEMENTS // shape.numel())
        for begin in range(0, len(alike), at_once):
            yield alike[begin : begin + at_once]


def _scale(rule: str | None, rows: int, columns: int) -> float:
    """How the learning rate grows with a matrix's shape."""
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
