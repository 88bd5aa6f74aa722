"""Compilation and activation checkpointing, layer by layer and in place, without renaming a weight."""

from __future__ import annotations

from torch import nn

from recyclegpt.models import RecycleGPT

GRAPHS = 4096
"""Graphs compiled from one layer's code before torch silently falls back to eager execution, per frame and in total.
Each unrolled step and validation need their own, and so does every job of a sweep in the same process."""


def layers_of(model: RecycleGPT) -> list[nn.Module]:
    """All transformer layers: the backbone's, then the module's."""
    return [*model.backbone.layers, *([] if model.recyclable is None else model.recyclable.layers)]


def set_up_layers(model: RecycleGPT, use_compile: bool, recompute_every: int, num_unrolled: int = 1) -> None:
    """Compile the layers, recompute every n-th in the backward pass (0: none), or both.

    Compiled layer by layer, all layers of a shape share one graph, so a deep model compiles as fast as a shallow one;
    in place, because `torch.compile(module)` would rename every key of the state dict.

    With both, the module's layers stay uncompiled in unrolled training: a recomputed layer finds the rows of later
    steps in its memory, which needs another graph, and that one may save its tensors in another order.
    """
    model.backbone.recompute_every = recompute_every
    if model.recyclable is not None:
        model.recyclable.recompute_every = recompute_every
    if not use_compile:
        return
    import torch._dynamo.config  # takes seconds, so only those who compile import it

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, GRAPHS)
    for layer in model.backbone.layers if recompute_every and num_unrolled > 1 else layers_of(model):
        # No graph for dynamic shapes: it is slower, and a recomputed layer might get it in place of its own.
        layer.compile(dynamic=False)
