"""The formula equals torch's own count of a training step."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training.step_cost import flops_per_token

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
