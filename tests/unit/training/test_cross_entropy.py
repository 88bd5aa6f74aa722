"""Chunked cross entropy against the plain computation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recyclegpt.kernels.build import find_compiler
from recyclegpt.training.accepted_length import chunked_acceptance
from recyclegpt.training.cross_entropy import chunked_cross_entropy


def inputs(rows: int = 23, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    return {
        "state_MC": normal(rows, 7),
        "weight_VC": normal(11, 7),
        "label_M": torch.randint(11, (rows,), generator=generator),
        "scale_M": torch.rand(rows, generator=generator, dtype=torch.double).round(decimals=1),
        "teacher_MC": normal(rows, 7),
    }


def plain(values: dict[str, torch.Tensor], teacher_share: float) -> torch.Tensor:
    logits = values["state_MC"] @ values["weight_VC"].t()
    nll = F.cross_entropy(logits, values["label_M"], reduction="none")
    # the teacher's distribution is a constant
    teacher = (values["teacher_MC"] @ values["weight_VC"].t()).detach().log_softmax(-1)
    kl = F.kl_div(logits.log_softmax(-1), teacher, reduction="none", log_target=True).sum(-1)
    return (values["scale_M"] * ((1 - teacher_share) * nll + teacher_share * kl)).sum()


@pytest.mark.parametrize("chunk_size", [1, 5, 23, 100])
@pytest.mark.parametrize("teacher_share", [0.0, 0.5, 1.0])
def test_loss_and_gradients_equal_the_plain_computation(chunk_size: int, teacher_share: float) -> None:
    values = inputs()
    results = []
    for function in (
        lambda v: plain(v, teacher_share),
        lambda v: chunked_cross_entropy(**v, teacher_share=teacher_share, chunk_size=chunk_size).total,
    ):
        mine = {k: v.clone().requires_grad_(k in ("state_MC", "weight_VC")) for k, v in values.items()}
        loss = function(mine)
        (3 * loss).backward()
        results.append((loss.detach(), mine["state_MC"].grad, mine["weight_VC"].grad))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("teacher_share", [0.0, 0.5])
def test_compiled_equals_plain(teacher_share: float) -> None:
    results = []
    for compiled in (False, True):
        values = {k: v.float() if v.is_floating_point() else v for k, v in inputs().items()}
        mine = {k: v.requires_grad_(k in ("state_MC", "weight_VC")) for k, v in values.items()}
        rows = chunked_cross_entropy(**mine, teacher_share=teacher_share, chunk_size=12, use_compile=compiled)
        rows.total.backward()
        with torch.no_grad():
            watched = chunked_cross_entropy(**mine, teacher_share=teacher_share, chunk_size=12, use_compile=compiled)
        results.append((rows.total.detach(), rows.nll_M, mine["state_MC"].grad, mine["weight_VC"].grad, *watched))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
def test_compiled_acceptance_equals_plain() -> None:
    results = []
    for compiled in (False, True):
        values = {k: v.float() if v.is_floating_point() else v for k, v in inputs().items() if k != "scale_M"}
        mine = {k: v.requires_grad_(k in ("state_MC", "weight_VC")) for k, v in values.items()}
        rows = chunked_acceptance(**mine, chunk_size=23, use_compile=compiled)
        rows.chance_M.sum().backward()
        results.append((rows.chance_M.detach(), rows.nll_M, mine["state_MC"].grad, mine["weight_VC"].grad))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_row_statistics() -> None:
    values = inputs()
    values["state_MC"] *= 40  # some labels are so unlikely that their probability underflows in fp32
    narrow = {k: v.float() if v.is_floating_point() else v for k, v in values.items()}
    with torch.no_grad():
        rows = chunked_cross_entropy(**narrow, chunk_size=4)
    logits = values["state_MC"] @ values["weight_VC"].t()
    expected = F.cross_entropy(logits, values["label_M"], reduction="none")
    assert expected.max() > 110
    torch.testing.assert_close(rows.nll_M, expected.float())
    assert (rows.prediction_M == logits.argmax(-1)).all()
    narrow["weight_VC"].requires_grad_()
    assert not chunked_cross_entropy(**narrow).nll_M.requires_grad


def test_a_row_left_out_cannot_spoil_the_sum() -> None:
    values = inputs()
    values["scale_M"][3] = 0
    expected = chunked_cross_entropy(**values).total
    values["state_MC"][3] = torch.inf
    assert chunked_cross_entropy(**values).total == expected


def test_frozen_head_gets_no_gradient() -> None:
    values = inputs()
    state = values.pop("state_MC").requires_grad_()
    chunked_cross_entropy(state, **values).total.backward()
    assert state.grad is not None
    assert values["weight_VC"].grad is None


def test_logits_of_the_whole_batch_are_never_held() -> None:
    """No tensor larger than a chunk of logits is made, counted by the dispatcher."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return result

    state = torch.randn(64, 4, requires_grad=True)
    weight = torch.randn(100, 4, requires_grad=True)
    label, scale = torch.zeros(64, dtype=torch.long), torch.ones(64)
    with Largest() as seen:
        chunked_cross_entropy(state, weight, label, scale, chunk_size=8).total.backward()
    assert 8 * 100 <= seen.numel < 64 * 100
