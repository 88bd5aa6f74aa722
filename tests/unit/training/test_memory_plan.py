"""The plan is held against the tensors that are really there, and says what the documentation says."""

from __future__ import annotations

import functools
import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import DualLoss, LossConfig, MuonAdamW, adamw
from recyclegpt.training.compile import recompute_layers
from recyclegpt.training.memory_plan import StepShape, activation_bytes, logits_bytes, memory_plan, optimizer_bytes

B, T, V = 3, 64, 64
OPTIMIZERS = {"adamw": functools.partial(adamw, lr=1e-3), "muon": functools.partial(MuonAdamW, lr=1e-3)}


class Alive(TorchDispatchMode):
    """Notes the memory behind every tensor that is made, and can tell which of it is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return made

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def bytes(self, besides: list[Tensor]) -> int:
        gc.collect()
        left_out = {tensor.untyped_storage()._cdata for tensor in besides}
        alive = {key: size for key, (weak, size) in self.storages.items() if not weak.expired()}
        return sum(size for key, size in alive.items() if key not in left_out)


def make_model(num_layers: int = 2, depth: int = 1, **shape: Any) -> RecycleGPT:
    torch.manual_seed(0)
    config = ModelConfig(V, T, num_layers=num_layers, hidden_size=64, num_heads=4, intermediate_size=128, **shape)
    return RecycleGPT(config, RecycleConfig(num_layers=depth))


class Peak(Alive):
    """Notes the most that was there after any operation."""

    peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(function, types, args, kwargs)
        self.storages = {key: held for key, held in self.storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return made


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_layers": 4, "depth": 0}, {"precision": "32-true"}),
    ({"num_layers": 4, "depth": 0}, {}),
    ({"depth": 2}, {"precision": "32-true"}),
    ({"depth": 2}, {}),
    ({"num_kv_heads": 2, "tie_embeddings": False}, {}),
    ({"depth": 2}, {"num_unrolled": 3}),
    ({"depth": 2, "num_kv_heads": 2}, {"num_unrolled": 3}),
    ({"depth": 2, "num_kv_heads": 1}, {"num_unrolled": 3, "precision": "32-true"}),
    ({"depth": 2, "num_kv_heads": 2}, {"masked": True, "num_unrolled": 2}),
    ({}, {"masked": True}),
    ({"depth": 2}, {"masked": True, "num_unrolled": 2}),
    ({"num_layers": 4}, {"recompute_every": 1, "precision": "32-true"}),
    ({"num_layers": 4, "depth": 2}, {"recompute_every": 1, "num_unrolled": 3}),
    ({"num_layers": 4, "depth": 2}, {"recompute_every": 2}),
]


FROZEN = [({"depth": 2}, {"precision": "32-true"}), ({}, {}), ({"depth": 2}, {"masked": True, "num_unrolled": 2})]


@pytest.mark.parametrize(
    ("shape", "settings", "frozen"), [*[(*case, False) for case in CASES], *[(*case, True) for case in FROZEN]]
)
def test_activations_and_logits_are_those_kept(shape: dict[str, Any], settings: dict[str, Any], frozen: bool) -> None:
    model = make_model(**shape)
    if frozen:
        model.backbone.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    step = StepShape(B, T, **settings)
    recompute_layers(model, step.recompute_every)
    views_NBT = torch.randint(V, (2 + step.num_unrolled, B, T))
    documents_NBT = (torch.arange(T) // 9).expand_as(views_NBT).contiguous() if step.masked else None
    mixed = step.precision == "bf16-mixed"
    with Alive() as alive, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        parts = DualLoss(LossConfig(num_unrolled=step.num_unrolled))(model, views_NBT, documents_NBT)
    measured = alive.bytes(besides=[*model.parameters(), views_NBT])
    kept, losses = activation_bytes(model, step)[0], logits_bytes(model, step)[0]
    plan = memory_plan(model, OPTIMIZERS["adamw"](model.named_parameters()), step)
    # A layer that is run again narrows its weights again; the plan counts them all, for they are there until autocast
    # ends.
    narrow = plan.narrow_weights * (1 if not step.recompute_every else 1 - 1 / step.recompute_every)
    assert parts.loss.requires_grad
    # What it leaves out are tables of rotations, masks and token numbers, which count in a model as small as this.
    assert kept + losses + narrow == pytest.approx(measured, rel=0.07 if step.recompute_every else 0.02)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_gradients_and_optimizer_are_exact(name: str, tied: bool) -> None:
    model = make_model(depth=2, tie_embeddings=tied)
    optimizer = OPTIMIZERS[name](model.named_parameters())
    plan = memory_plan(model, optimizer, StepShape(B, T))
    DualLoss(LossConfig())(model, torch.randint(V, (3, B, T))).loss.backward()
    optimizer.step()
    assert plan.parameters == sum(parameter.nbytes for parameter in model.parameters())
    assert plan.gradients == sum(
        parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None
    )
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert plan.optimizer == sum(value.nbytes for value in held)
    assert plan.optimizer == optimizer_bytes(optimizer)


@pytest.mark.parametrize(("every", "at_most"), [(0, 1.1), (1, 1.4)])
def test_the_total_bounds_what_a_step_ever_holds(every: int, at_most: float) -> None:
    """It adds up what need not be there at once: gradients, and in layers that are run again the narrow weights."""
    model = make_model(num_layers=4)
    recompute_layers(model, every)
    optimizer = OPTIMIZERS["muon"](model.named_parameters())
    rows = 8
    with Peak() as peak:
        for parameter in model.parameters():
            peak.note(parameter)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = DualLoss(LossConfig())(model, torch.randint(V, (3, rows, T))).loss
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
    plan = memory_plan(model, optimizer, StepShape(rows, T, recompute_every=every))
    assert 0.97 * peak.peak <= plan.total <= at_most * peak.peak


def test_a_chunk_of_logits_is_counted_at_its_peak() -> None:
    model = make_model()
    small, large = (logits_bytes(model, StepShape(B, T, chunk_size=rows))[1] for rows in (10, 20))
    assert large - small == 10 * V * (2 + 4 + 2)
    assert logits_bytes(model, StepShape(B, T, chunk_size=10**9))[1] == logits_bytes(model, StepShape(B, T))[1]


def test_what_processes_share_is_divided() -> None:
    model = make_model(num_layers=8)
    optimizer = OPTIMIZERS["adamw"](model.named_parameters())
    alone, shared = (memory_plan(model, optimizer, StepShape(B, T, num_shards=n)) for n in (1, 4))
    assert shared.optimizer == alone.optimizer // 4
    assert alone.parameters // 4 < shared.parameters < alone.parameters
    assert shared.activations == alone.activations
    assert memory_plan(model, optimizer, StepShape(B, T, bucketed=True)).gradients == 2 * alone.gradients


def test_a_frozen_backbone_has_neither_gradients_nor_state() -> None:
    model = make_model()
    assert model.recyclable is not None
    model.backbone.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    plan = memory_plan(model, OPTIMIZERS["adamw"](model.named_parameters()), StepShape(B, T))
    assert plan.gradients == 4 * model.num_parameters_recycle()
    assert plan.parameters == 4 * model.num_parameters()


def test_the_paper_shape_has_the_numbers_of_the_documentation() -> None:
    with torch.device("meta"):
        shape = ModelConfig(
            32000, 2048, num_layers=38, hidden_size=1664, num_heads=13, intermediate_size=4480, tie_embeddings=False
        )
        model = RecycleGPT(shape, RecycleConfig(num_layers=6))
    optimizer = OPTIMIZERS["muon"](model.named_parameters())
    kept, again = (
        memory_plan(model, optimizer, StepShape(16, 2048, recompute_every=every, on_cuda=True)) for every in (0, 1)
    )
    assert kept.describe(150e9) == (
        "6.33 GB parameters, 6.33 GB gradients, 6.76 GB optimizer, 2.95 GB narrow weights, 111 GB activations, "
        "3.1 GB logits = 137 GB of 150 GB"
    )
    assert again.describe() == (
        "6.33 GB parameters, 6.33 GB gradients, 6.76 GB optimizer, 2.95 GB narrow weights, 12.1 GB activations, "
        "3.1 GB logits = 37.6 GB"
    )
