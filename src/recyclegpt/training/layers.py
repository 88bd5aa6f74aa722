"""The layers while they learn: compiled, recomputed, sharded over processes (FSDP2), and gathered again."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

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


def shard(module: LightningModule, model: RecycleGPT, mesh: DeviceMesh) -> None:
    """Shard the weights over the processes of a one-dimensional mesh, in place.

    Each layer is gathered when it runs. Embedding, norms, fold and LM head are gathered when a step begins and kept
    until its backward pass has ended, because the dual loss reads the LM head's weight itself.
    """
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for step in ("training_step", "validation_step"):
        register_fsdp_forward_method(module, step)


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether any weight is sharded over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gathered(model: RecycleGPT) -> RecycleGPT:
    """A whole copy of a sharded model; a model that is not sharded is returned as it is. Every process must call it."""
    if not is_sharded(model):
        return model
    with torch.device("meta"):
        whole = RecycleGPT(model.config, model.recycle_config)
    weights = {
        name: weight.full_tensor() if isinstance(weight, DTensor) else weight
        for name, weight in model.state_dict().items()
    }
    whole.materialise(model.device)
    whole.load_state_dict(weights)
    return whole
