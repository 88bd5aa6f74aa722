"""Early exit: what a plan draws, and that the exit learns; off, nothing is drawn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recyclegpt.models import ModelConfig, RecycleGPT
from recyclegpt.training.dual_loss import DualLoss, LossConfig
from recyclegpt.training.early_exit import plan_exit

TOKENS = torch.randint(19, (4000, 3), generator=torch.Generator().manual_seed(0))


def test_later_layers_are_left_out_more_often_and_the_exit_rotates() -> None:
    plans = [plan_exit(5, 0.4, TOKENS, step) for step in range(5)]
    assert [plan.num_layers for plan in plans] == [1, 2, 3, 4, 1]
    shares = plans[0].dropped_LB.float().mean(1)
    expected = 0.4 * (2 ** (torch.arange(5) / 4) - 1)
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)
    assert torch.equal(plans[0].dropped_LB, plan_exit(5, 0.4, TOKENS, 0).dropped_LB), "a resumed run draws the same"
    assert not torch.equal(plans[0].dropped_LB, plans[1].dropped_LB)
    assert not torch.equal(plans[0].dropped_LB, plan_exit(5, 0.4, TOKENS + 1, 0).dropped_LB)


def test_states_and_loss_by_hand() -> None:
    model = RecycleGPT(ModelConfig(19, 16, num_layers=3, hidden_size=12, num_heads=2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    views = torch.stack([TOKENS[:2].repeat(1, 3)[:, n : n + 7] for n in range(3)])
    dropped = torch.tensor([[False, False], [False, True], [True, False]])
    hidden, exits = model.exit_states(views[0], None, 2, dropped)

    def through(row: int, *layers: int) -> torch.Tensor:
        tokens = views[0][row : row + 1]
        x, inputs = model.backbone.embed_tokens(tokens), model._attention_inputs(tokens, None, None, None, None)
        for number in layers:
            x = model.backbone.layers[number](x, 0, inputs)
        return model.backbone.norm(x)[0]

    torch.testing.assert_close(hidden, torch.stack([through(0, 0, 1), through(1, 0, 2)]))
    torch.testing.assert_close(exits, torch.stack([through(0, 0, 1), through(1, 0)]))
    terms = DualLoss(LossConfig(early_exit_weight=0.5))
    states = model.states(views, hidden_BTC=hidden)
    loss = terms(states, model.lm_head.weight, views, exit_BTC=exits).loss
    ce = [F.cross_entropy(model.logits(x).flatten(0, 1), views[1].flatten()) for x in (hidden, exits)]
    assert loss.item() == pytest.approx((ce[0] + 0.5 * ce[1]).item())
