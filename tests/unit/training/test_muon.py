"""Batched Muon computes what `torch.optim.Muon` computes matrix by matrix."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from recyclegpt.training import MuonAdamW, muon
from recyclegpt.training.muon import Muon, orthogonalised

SHAPES = [(16, 16), (16, 40), (40, 16), (16, 16), (40, 16), (16, 16), (24, 8)]
# A stack's products may add up in another order than one matrix's. Where torch's kernels do not, all is bit-equal.
TOLERANCE = {"rtol": 0.02, "atol": 1e-5}


def make_weights(shapes: list[tuple[int, int]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(weights: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1 + step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def assert_close(mine: Tensor, other: Tensor, before: Tensor) -> None:
    """Compares how far they have moved, which is little beside what they are."""
    torch.testing.assert_close(mine - before, other - before, **TOLERANCE)


@pytest.mark.parametrize("at_once", [2 * 16 * 16, 1 << 26])
@pytest.mark.parametrize(
    "settings", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.3}, {"ns_steps": 3}]
)
def test_equals_the_library(settings: dict[str, Any], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "STACK_ELEMENTS", at_once)
    fast, slow, before = make_weights(), make_weights(), make_weights()
    mine = Muon([{"params": fast[:4]}, {"params": fast[4:], "lr": 0.02}], lr=0.01, **settings)
    other = torch.optim.Muon([{"params": slow[:4]}, {"params": slow[4:], "lr": 0.02}], lr=0.01, **settings)
    for step in range(4):
        for weights in (fast, slow):
            give_gradients(weights, step)
            weights[1].grad = None if step < 2 else weights[1].grad
        mine.step_batched()
        other.step()
        if step == 1:
            assert torch.equal(fast[1], before[1]), "one without a gradient is left as it is"
    for left, right, start in zip(fast, slow, before, strict=True):
        assert_close(left, right, start)
        torch.testing.assert_close(mine.state[left]["momentum_buffer"], other.state[right]["momentum_buffer"])
        assert not torch.equal(left, start)


def test_singular_values_are_drawn_to_one() -> None:
    stack = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    values = torch.linalg.svdvals(orthogonalised(stack, (3.4445, -4.7750, 2.0315), 8).float())
    assert values.shape == (3, 12)
    assert 0.5 < float(values.min()) < float(values.max()) < 1.5


def test_a_deeper_model_takes_no_more_operations() -> None:
    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.number = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for depth in (2, 8):
        weights = make_weights([(16, 16)] * depth)
        give_gradients(weights, 0)
        optimizer = Muon(weights, lr=0.01)
        optimizer.step_batched()  # makes the momenta
        with Count() as count:
            optimizer.step_batched()
        counts.append(count.number)
    assert counts[0] == counts[1]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed_tokens = nn.Embedding(9, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16, bias=False) for _ in range(3)])

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed_tokens(tokens)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def train(net: Net, optimizer: MuonAdamW, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(9, (4, 5), generator=torch.Generator().manual_seed(step))
        net.zero_grad()
        net(tokens).square().mean().backward()
        optimizer.step()


def test_checkpoints_go_from_one_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run begun matrix by matrix goes on in batches, by the same state dict."""
    slow = Net()
    optimizer = MuonAdamW(slow.named_parameters(), lr=0.01)
    train(slow, optimizer, range(3))
    stored = io.BytesIO()
    torch.save([slow.state_dict(), optimizer.state_dict()], stored)
    train(slow, optimizer, range(3, 6))

    stored.seek(0)
    weights, state = torch.load(stored, weights_only=True)
    fast = Net()
    fast.load_state_dict(weights)
    batched: list[int] = []
    plain = Muon.step_batched
    monkeypatch.setattr(muon, "batching_pays", lambda _: True)
    monkeypatch.setattr(Muon, "step_batched", lambda self: (batched.append(1), plain(self))[1])
    resumed = MuonAdamW(fast.named_parameters(), lr=0.01)
    resumed.load_state_dict(state)
    train(fast, resumed, range(3, 6))
    assert len(batched) == 3
    assert list(resumed.state_dict()["state"]) == list(optimizer.state_dict()["state"])
    for (name, mine), other in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert_close(mine, other, weights[name])


def test_a_cpu_keeps_the_librarys_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_weights()
    give_gradients(weights, 0)
    monkeypatch.setattr(Muon, "step_batched", lambda _: pytest.fail("batched"))
    Muon(weights, lr=0.1).step()
