"""Activation checkpointing changes no gradient, and one compiled graph serves all layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.training import DualLoss, LossConfig
from recyclegpt.training.layers import GRAPHS, layers_of, set_up_layers

V, B, T = 29, 2, 12


def make_model(depth: int = 2) -> RecycleGPT:
    torch.manual_seed(0)
    model = RecycleGPT(ModelConfig(V, T, num_layers=3, hidden_size=16, num_heads=2), RecycleConfig(num_layers=depth))
    for parameter in model.parameters():  # layers begin as the identity, which would hide a mistake
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def views(num_unrolled: int) -> Tensor:
    return torch.randint(V, (2 + num_unrolled, B, T), generator=torch.Generator().manual_seed(1))


def train_once(model: RecycleGPT, num_unrolled: int, masked: bool) -> list[Tensor]:
    """The loss and every gradient."""
    views_NBT = views(num_unrolled)
    documents_NBT = (torch.arange(T) // 5).expand_as(views_NBT) if masked else None
    states = model.states(views_NBT, documents_NBT, num_unrolled)
    dual_loss = DualLoss(LossConfig(num_unrolled=num_unrolled))
    loss = dual_loss(states, model.lm_head.weight, views_NBT, documents_NBT).loss
    loss.backward()
    return [loss.detach(), *[parameter.grad for parameter in model.parameters() if parameter.grad is not None]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_unrolled", [1, 3])
def test_gradients_are_bit_equal(num_unrolled: int, masked: bool) -> None:
    wanted = train_once(make_model(), num_unrolled, masked)
    for every, runs in ((1, 2), (2, 1)):
        model = make_model()
        set_up_layers(model, False, every)
        calls: list[int] = []
        layer = layers_of(model)[1]
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found = train_once(model, num_unrolled, masked)
        assert len(found) == len(wanted)
        assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))
        assert len(calls) == runs, "it ran again, or was left alone, as asked"


def test_nothing_is_run_again_without_gradients() -> None:
    model = make_model()
    set_up_layers(model, False, 1)
    assert list(model.state_dict()) == list(make_model().state_dict())
    with torch.no_grad():
        hidden_BTC = model.states(views(1)).hidden_BTC
    assert torch.equal(hidden_BTC, make_model().states(views(1)).hidden_BTC)


@pytest.mark.parametrize(
    ("num_unrolled", "every", "graphs"),
    [(1, 0, 1), (1, 1, 1), (2, 0, 1 + 2 * 2), (2, 1, 1)],
    ids=["all", "all, run again", "and each step of the module's", "not the module's, run again"],
)
def test_layers_share_a_graph(num_unrolled: int, every: int, graphs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = train_once(make_model(), num_unrolled, masked=False)
    torch._dynamo.reset()
    counter: Any = CompileCounter()  # runs what was traced without compiling it
    model = make_model()
    plain = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **settings: plain(module, backend=counter, **settings)
    )
    with torch._dynamo.config.patch(recompile_limit=8):  # set back afterwards
        set_up_layers(model, True, every, num_unrolled)
        found = train_once(model, num_unrolled, masked=False)
    torch._dynamo.reset()
    assert counter.frame_count == graphs
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_layers_of_a_whole_sweep_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs share one process, and layers of another shape need another graph."""
    torch._dynamo.reset()
    counter: Any = CompileCounter()
    plain = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **settings: plain(module, backend=counter, **settings)
    )
    limits, shapes = torch._dynamo.config, range(1, 13)
    with limits.patch(recompile_limit=4, accumulated_recompile_limit=8), torch.no_grad():
        for heads in shapes:
            config = ModelConfig(V, T, num_layers=1, hidden_size=4 * heads, num_heads=heads)
            model = RecycleGPT(config, RecycleConfig(num_layers=0))
            set_up_layers(model, True, 0)
            model.states(views(1))
        assert limits.recompile_limit == limits.accumulated_recompile_limit == GRAPHS
    torch._dynamo.reset()
    assert counter.frame_count == len(shapes)
