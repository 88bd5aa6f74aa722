"""Compilation and activation checkpointing, layer by layer and in place, without renaming a weight."""

from __future__ import annotations

from torch import nn

from recyclegpt.models import RecycleGPT

GRAPHS = 4096
"""Graphs compiled from one layer's code before torch silently falls back to eager execution. One graph serves all
layers of a shape, but each unrolled step and validation need their own, and so does every job of a sweep in the same
process. Torch has two such limits, per frame and in total."""


def layers_of(model: RecycleGPT) -> list[nn.Module]:
    """All transformer layers: the backbone's, then the module's."""
    return [*model.backbone.layers, *([] if model.recyclable is None else model.recyclable.layers)]


def set_up_layers(model: RecycleGPT, use_compile: bool, recompute_every: int, num_unrolled: int = 1) -> None:
    """Compile the layers, recompute every n-th in the backward pass (0: none), or both.

    With both, the module's layers stay uncompiled in unrolled training: a recomputed layer finds the rows of later
    steps in its memory, which needs another graph, and that one may save its tensors in another order.
    """
    recompute_layers(model, recompute_every)
    if use_compile:
        compile_layers(model, module=not (recompute_every and num_unrolled > 1))


def compile_layers(model: RecycleGPT, module: bool = True) -> None:
    """Compile layer by layer: all layers of a shape share one graph, so a deep model compiles as fast as a shallow one.

    In place, because `torch.compile(module)` would rename every key of the state dict. `module`: the recyclable
    module's layers as well.
    """
    import torch._dynamo.config  # takes seconds, so only those who compile import it

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, GRAPHS)
    for layer in layers_of(model) if module else model.backbone.layers:
        # No graph for dynamic shapes: it is slower, and a recomputed layer might get it in place of its own.
        layer.compile(dynamic=False)


def recompute_layers(model: RecycleGPT, every: int) -> None:
    """Activation checkpointing of every n-th layer; 0: of none."""
    model.backbone.recompute_every = every
    if model.recyclable is not None:
        model.recyclable.recompute_every = every
