"""What is done to the transformer layers of a model one by one, in place, without renaming a weight."""

from __future__ import annotations

from torch import nn

from recyclegpt.models import RecycleGPT

GRAPHS = 4096
"""Graphs that may be compiled of one layer's code before torch falls back to eager execution, which it does silently:
one serves all layers of a shape, but each step of unrolled training and validation have their own, and so has every job
of a sweep, whose jobs share one process. Torch has two limits, of those alike and of all together."""


def layers_of(model: RecycleGPT) -> list[nn.Module]:
    """The layers of backbone and module."""
    return [*model.backbone.layers, *([] if model.recyclable is None else model.recyclable.layers)]


def set_up_layers(model: RecycleGPT, compile: bool, recompute_every: int, num_unrolled: int = 1) -> None:  # noqa: A002
    """What a run asks for: compiled layers, activation checkpointing of every so many, or both.

    With both, the module's layers stay uncompiled in unrolled training: run again, a layer finds the rows of later
    steps in its memory, for which another graph is compiled, and that may keep its tensors in another order.
    """
    recompute_layers(model, recompute_every)
    if compile:
        compile_layers(model, module=not (recompute_every and num_unrolled > 1))


def compile_layers(model: RecycleGPT, module: bool = True) -> None:
    """Compile layer by layer: all layers of a shape share one graph, so a deep model compiles no longer than a shallow
    one, and what lies between the layers is a few operations. `module`: its layers as well.

    In place, because `torch.compile(module)` would rename every key of the state dict.
    """
    import torch._dynamo.config  # seconds, which only those pay who compile

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, GRAPHS)
    for layer in layers_of(model) if module else model.backbone.layers:
        # Never a graph for any shape: it is slower, and a layer that is run again might get it in place of its own.
        layer.compile(dynamic=False)


def recompute_layers(model: RecycleGPT, every: int) -> None:
    """Activation checkpointing of every so many layers; 0: of none."""
    model.backbone.recompute_every = every
    if model.recyclable is not None:
        model.recyclable.recompute_every = every
