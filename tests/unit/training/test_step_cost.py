"""Operations and memory of a step, compared with those that torch counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import DualLoss, LossConfig, MuonAdamW
from recyclegpt.training.layers import set_up_layers
from recyclegpt.training.step_cost import flops_per_token, memory_plan

SHAPE = ModelConfig(
    vocab_size=50, context_length=16, num_layers=3, hidden_size=24, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=40,
)  # fmt: skip
B, T = 2, 12


def counted(depth: int, num_unrolled: int, train_backbone: bool = True, draft_vocab: int | None = None) -> float:
    with torch.device("meta"):
        model = RecycleGPT(SHAPE, RecycleConfig(num_layers=depth, draft_vocab=draft_vocab))
    if not train_backbone:
        model.backbone.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    views_NBT = torch.zeros(2 + num_unrolled, B, T, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        states = model.states(views_NBT, num_unrolled=num_unrolled)
        heads = [model.draft_logits(state).sum() for state in states.recycled_KBTC]
        heads += [model.logits(states.hidden_BTC).sum()] if train_backbone else []
        torch.stack(heads).sum().backward()
    return counter.get_total_flops() / (B * T)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_equals_torchs_count(depth: int) -> None:
    assert flops_per_token(SHAPE, RecycleConfig(num_layers=depth), T) == pytest.approx(counted(depth, 1), rel=0.02)


def test_a_frozen_backbone_costs_its_forward_pass() -> None:
    # The fold's backward pass makes no gradient of its frozen inputs, which the formula does not deduct.
    expected = counted(2, 1, train_backbone=False, draft_vocab=20)
    recycle = RecycleConfig(num_layers=2, draft_vocab=20)
    assert flops_per_token(SHAPE, recycle, T, train_backbone=False) == pytest.approx(expected, rel=0.05)


def test_six_per_weight_and_attention() -> None:
    weights, head = 3 * (24 * 8 * (4 + 2 + 2 + 4) + 3 * 24 * 40), 24 * 50
    assert flops_per_token(SHAPE, RecycleConfig(0), T) == 6 * (weights + head) + 12 * 3 * 4 * 8 * T


def test_each_unrolled_step_costs_the_module_and_a_head_again() -> None:
    none, one, two = (
        flops_per_token(SHAPE, RecycleConfig(depth), T, steps) for depth, steps in ((0, 1), (2, 1), (2, 2))
    )
    # The second step sees one key more.
    assert two - one == one - none + 3 * 2 * 4 * 4 * 8


B, T, V = 8, 64, 64


class Peak(TorchDispatchMode):
    """The most bytes of tensors that existed after any operation."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.peak, self.storages = 0, {}
        self.note(weights)

    def note(self, tensors: list[Tensor]) -> None:
        for storage in (tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)):
            self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.storages = {key: held for key, held in self.storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.note(tree_leaves(made))
        return made


@pytest.mark.parametrize("settings", [{}, {"masked": True}, {"num_unrolled": 3}, {"recompute_every": 1}])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_plan_is_near_the_peak_of_a_step(precision: str, settings: dict[str, Any]) -> None:
    config = ModelConfig(V, T, num_layers=4, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=128)
    model = RecycleGPT(config, RecycleConfig(num_layers=2))
    set_up_layers(model, False, settings.get("recompute_every", 0))
    optimizer = MuonAdamW(model.named_parameters(), lr=1e-3)
    num_unrolled = settings.get("num_unrolled", 1)
    dual_loss = DualLoss(LossConfig(num_unrolled=num_unrolled))
    with Peak(list(model.parameters())) as measured:
        for _ in range(2):
            views = torch.randint(V, (2 + num_unrolled, B, T))
            documents = (torch.arange(T) // 9).expand_as(views).contiguous() if "masked" in settings else None
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                states = model.states(views, documents, num_unrolled)
                loss = dual_loss(states, model.lm_head.weight, views, documents).loss
            loss.backward()
            del loss, states
            optimizer.step()
            optimizer.zero_grad()
    assert memory_plan(model, optimizer, B, T, precision, **settings) == pytest.approx(measured.peak, rel=0.25)
