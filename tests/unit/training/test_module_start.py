"""A module that begins with the backbone's last layers."""

from __future__ import annotations

import pytest
import torch

from recyclegpt import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training.module_start import begin_with_last_layers, can_begin_with_last_layers


def model_of(num_layers: int, depth: int, **recycle: bool) -> RecycleGPT:
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=64, context_length=64, num_layers=num_layers, hidden_size=32, num_heads=2)
    model = RecycleGPT(shape, RecycleConfig(num_layers=depth, **recycle))
    for name, weight in model.backbone.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(weight, std=0.3)
    return model


def test_the_fold_is_exact_where_the_copied_layer_reads_the_embedding() -> None:
    model, tokens_RT = model_of(1, 1), torch.randint(64, (40, 64))
    assert begin_with_last_layers(model, tokens_RT) > 0.9999
    views_NBT = torch.stack([tokens_RT[:, :-1], tokens_RT[:, 1:]])
    with torch.no_grad():
        (recycled_BTC,) = model.states(views_NBT).recycled_KBTC
        # Row t of the module has seen the tokens 2..t+1, as the backbone has where the text begins with the second.
        torch.testing.assert_close(recycled_BTC, model.backbone_states(tokens_RT[:, 1:]), atol=0.02, rtol=0.01)


def test_a_deep_backbone_is_predicted_better_than_by_a_fresh_module() -> None:
    model, tokens_RT = model_of(3, 2), torch.randint(64, (40, 64))
    views_NBT = torch.stack([tokens_RT[:, :-1], tokens_RT[:, 1:]])

    def error() -> float:
        with torch.no_grad():
            states = model.states(views_NBT)
        return float((states.recycled_KBTC[0][:, :-1] - states.hidden_BTC[:, 1:]).square().mean())

    fresh = error()
    assert 0 < begin_with_last_layers(model, tokens_RT) < 1
    assert error() < 0.7 * fresh


@pytest.mark.parametrize("without", ["first_input_norm", "final_norm"])
def test_only_modules_with_the_layers_of_the_backbone_begin_with_them(without: str) -> None:
    assert can_begin_with_last_layers(model_of(3, 2))
    assert not can_begin_with_last_layers(model_of(3, 2, **{without: False}))
    assert not can_begin_with_last_layers(model_of(1, 2))
