"""The two optimizers equal the library's own, and resume from a checkpoint bit for bit."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from recyclegpt.errors import ConfigError
from recyclegpt.training.optimizer import MuonAdamW, adamw

MATRICES = {"layers.0.weight", "layers.1.weight", "fc.weight"}
EMBEDDINGS = {"embed_tokens.weight", "lm_head.weight"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 12, bias=False), nn.Linear(12, 8)])
        self.norm = nn.RMSNorm(8)
        self.fc = nn.Linear(8, 8, bias=False)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        x = x + self.layers[1](torch.tanh(self.layers[0](x)))
        return self.lm_head(self.fc(self.norm(x)))


def make_net() -> Net:
    torch.manual_seed(1)
    return Net()


def backward(net: nn.Module, step: int) -> None:
    tokens = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(step))
    net.zero_grad()
    nn.functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()


def train(net: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        backward(net, step)
        for optimizer in optimizers:
            optimizer.step()


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def group_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict:
    found = [group for group in optimizer.param_groups if any(p is parameter for p in group["params"])]
    assert len(found) == 1
    return found[0]


def test_muon_takes_the_matrices_between_hidden_states_and_all_matrices_decay() -> None:
    net = make_net()
    optimizer = MuonAdamW(net.named_parameters(), lr=1e-3)
    for name, parameter in net.named_parameters():
        group = group_of(optimizer, parameter)
        assert group["kind"] == ("muon" if name in MATRICES else "adamw")
        assert group["weight_decay"] == (0.1 if name in MATRICES | EMBEDDINGS else 0.0)


def test_adamw_decays_matrices_only() -> None:
    net = make_net()
    optimizer = adamw(net.named_parameters(), lr=1e-3, weight_decay=0.3)
    for name, parameter in net.named_parameters():
        assert group_of(optimizer, parameter)["weight_decay"] == (0.3 if name in MATRICES | EMBEDDINGS else 0.0)


def test_muon_adamw_equals_the_two_library_optimizers() -> None:
    ours, theirs = make_net(), make_net()
    train(ours, [MuonAdamW(ours.named_parameters(), lr=2e-3, muon_lr=3e-3, weight_decay=0.2)], range(5))
    named = dict(theirs.named_parameters())
    others = {name: parameter for name, parameter in named.items() if name not in MATRICES}
    reference = [
        torch.optim.Muon(
            [named[name] for name in named if name in MATRICES],
            lr=3e-3,
            weight_decay=0.2,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [
                {"params": [p for p in others.values() if p.ndim == 2], "weight_decay": 0.2},
                {"params": [p for p in others.values() if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=2e-3,
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]
    train(theirs, reference, range(5))
    assert_same(weights(ours), weights(theirs))
    assert not torch.equal(weights(ours)["fc.weight"], weights(make_net())["fc.weight"])


@pytest.mark.parametrize("factory", [adamw, MuonAdamW])
def test_continuation_from_a_checkpoint_is_bit_identical(factory: type) -> None:
    straight = make_net()
    optimizer = factory(straight.named_parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    file = io.BytesIO()
    for step in range(6):
        train(straight, [optimizer], range(step, step + 1))
        scheduler.step()
        if step == 2:
            saved = {
                "net": straight.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
            }
            torch.save(saved, file)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_net()
    resumed.load_state_dict(saved["net"])
    # Other settings than the saved ones: those of the checkpoint must win.
    optimizer = factory(resumed.named_parameters(), lr=5.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    for step in range(3, 6):
        train(resumed, [optimizer], range(step, step + 1))
        scheduler.step()
    assert_same(weights(straight), weights(resumed))


def test_a_copied_optimizer_continues_alike() -> None:
    net = make_net()
    optimizer = MuonAdamW(net.named_parameters(), lr=1e-2, muon_lr=3e-2)
    train(net, [optimizer], range(2))
    twin, twin_optimizer = copy.deepcopy((net, optimizer))
    train(net, [optimizer], range(2, 4))
    train(twin, [twin_optimizer], range(2, 4))
    assert_same(weights(net), weights(twin))


def test_a_setting_missing_from_a_checkpoint_takes_its_default() -> None:
    net, reference = make_net(), make_net()
    optimizer = MuonAdamW(net.named_parameters(), lr=1e-2)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group.pop("ns_coefficients", None)
        group.pop("capturable", None)
    optimizer.load_state_dict(state)
    train(net, [optimizer], range(2))
    train(reference, [MuonAdamW(reference.named_parameters(), lr=1e-2)], range(2))
    assert_same(weights(net), weights(reference))


@pytest.mark.parametrize("factory", [adamw, MuonAdamW])
def test_without_gradients_a_step_changes_nothing(factory: type) -> None:
    net = make_net()
    optimizer = factory(net.named_parameters(), lr=1e-2)
    train(net, [optimizer], range(2))
    before, state = weights(net), copy.deepcopy(optimizer.state_dict()["state"])
    net.zero_grad(set_to_none=True)
    optimizer.step()
    assert_same(before, weights(net))
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[index][key]))


@pytest.mark.parametrize("factory", [adamw, MuonAdamW])
def test_frozen_and_tied_parameters(factory: type) -> None:
    net = make_net()
    net.embed_tokens.requires_grad_(False)
    net.lm_head.weight = nn.Parameter(torch.zeros(11, 8))
    tied = [*net.named_parameters(), ("again.lm_head.weight", net.lm_head.weight)]
    optimizer = factory(tied, lr=1e-2)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(net.parameters())) - 1
    assert not any(p is net.embed_tokens.weight for p in held)


def test_schedulers_scale_every_group() -> None:
    net = make_net()
    optimizer = MuonAdamW(net.named_parameters(), lr=1.0, muon_lr=2.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "muon": 1.0,
        "decay": 0.5,
        "no_decay": 0.5,
    }
    net_at_rate_0 = make_net()
    optimizer = MuonAdamW(net_at_rate_0.named_parameters(), lr=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    train(net_at_rate_0, [optimizer], range(1))
    assert_same(weights(net_at_rate_0), weights(make_net()))


def test_step_calls_the_closure_once_with_gradients_on() -> None:
    net = make_net()
    optimizer = MuonAdamW(net.named_parameters(), lr=1e-2)
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        backward(net, 0)
        return 3.5

    assert optimizer.step(closure) == 3.5
    assert calls == [True]


def test_every_bad_value_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        MuonAdamW([], lr=-1, muon_lr=float("nan"), weight_decay=-0.1, betas=(0.9, 1.5), eps=-1, momentum=1.0)
    for words in (
        "lr: -1",
        "muon_lr: nan",
        "weight_decay: -0.1",
        "eps: -1",
        "1.5 is not",
        "1.0 is not",
        "no trainable",
    ):
        assert words in str(error.value)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        adamw([], lr=1e-3)
