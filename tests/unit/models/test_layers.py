"""Layers under mixed precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from recyclegpt.models.layers import RMSNorm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_does_not_widen_a_norm(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = F.rms_norm

    def as_on_cuda(x: Tensor, *given: object) -> Tensor:
        """What torch 2.13 does there, and on a CPU does not."""
        wide = x.float() if torch.is_autocast_enabled("cpu") else x
        return plain(wide, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "rms_norm", as_on_cuda)
    norm = RMSNorm(8)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 8, dtype=dtype, requires_grad=True)
    wanted = norm(x)
    wanted.float().sum().backward()
    grad, x.grad = x.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
        assert torch.is_autocast_enabled("cpu"), "what follows is still in mixed precision"
        assert F.rms_norm(x, (8,)).dtype == torch.float32, "as on CUDA"
    found.float().sum().backward()
    assert found.dtype == x.dtype
    assert torch.equal(found, wanted)
    assert grad is not None
    assert x.grad is not None
    assert torch.equal(x.grad, grad)


def test_nor_does_that_of_cuda() -> None:
    """No GPU is needed where tensors hold nothing: autocast chooses by what they say of themselves."""
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            norm, x = RMSNorm(8), torch.empty(3, 8, dtype=torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)  # torch.autocast leaves it off where there is no GPU
        try:
            assert norm(x).dtype == torch.bfloat16
            assert norm(x.float()).dtype == torch.float32
        finally:
            torch.set_autocast_enabled("cuda", False)


def test_a_norm_is_one_graph_under_autocast() -> None:
    norm, x = RMSNorm(8), torch.randn(3, 8, dtype=torch.bfloat16)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), norm(x))
    assert torch.equal(compiled(x), norm(x))
