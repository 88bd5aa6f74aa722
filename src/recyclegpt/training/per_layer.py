"""What is done to the transformer layers of a model one by one, in place, without renaming a weight."""

from __future__ import annotations

from torch import nn

from recyclegpt.models import RecycleGPT

GRAPHS = 64
"""Graphs that may be compiled of one layer's code before torch falls back to eager execution, which it does silently:
one serves all layers of a shape, but each step of unrolled training and validation have their own."""


def layers_of(model: RecycleGPT) -> list[nn.Module]:
    """The layers of backbone and module."""
    return [*model.backbone.layers, *([] if model.recyclable is None else model.recyclable.layers)]


def compile_layers(model: RecycleGPT) -> None:
    """Compile layer by layer: all layers of a shape share one graph, so a deep model compiles no longer than a shallow
    one, and what lies between the layers is a few operations.

    In place, because `torch.compile(module)` would rename every key of the state dict.
    """
    import torch._dynamo.config  # seconds, which only those pay who compile

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    for layer in layers_of(model):
        layer.compile()


def recompute_layers(model: RecycleGPT, every: int) -> None:
    """Activation checkpointing of every so many layers; 0: of none."""
    model.backbone.recompute_every = every
    if model.recyclable is not None:
        model.recyclable.recompute_every = every
