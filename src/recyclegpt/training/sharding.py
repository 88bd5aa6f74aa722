"""Weights sharded over processes (FSDP2, `torch.distributed.fsdp.fully_shard`), and gathered again."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from recyclegpt.models import RecycleGPT
from recyclegpt.training.compile import layers_of


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
