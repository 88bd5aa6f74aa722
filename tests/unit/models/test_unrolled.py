"""The joined attention of unrolled training equals one attention with the whole mask, values and gradients."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import recyclegpt.models.unrolled as unrolled
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.models.unrolled import causal_and_own, unrolled_mask

# B, H, G, T, D, steps
SHAPES = [(2, 4, 2, 12, 8, 3), (1, 2, 2, 130, 64, 4), (2, 3, 3, 1, 6, 2), (1, 4, 2, 260, 4, 1)]
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    T = query.shape[2]
    causal = torch.ones(T, T, dtype=torch.bool, device=query.device).tril()
    mask = unrolled_mask(key.shape[2] // T, causal)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", scale: float = 1.0) -> list[Tensor]:
    B, H, G, T, D, steps = shape
    draw = torch.Generator().manual_seed(1)
    sizes = [(B, T, H, D), (B, steps * T, G, D), (B, steps * T, G, D), (B, T, H, D)]
    tensors = [torch.randn(size, generator=draw, dtype=torch.float64) * scale for size in sizes]
    return [tensor.to(device, dtype).transpose(1, 2).requires_grad_() for tensor in tensors]


def results(function: object, *tensors: Tensor) -> list[Tensor]:
    *given, grad = tensors
    out = function(*given)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, given, grad.detach())]


@pytest.mark.parametrize("scale", [1.0, 6.0])  # large: the softmax is a choice
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_dense_mask(shape: tuple[int, ...], scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = drawn(shape, torch.float64, scale=scale)
    expected = results(dense, *tensors)
    for function in (causal_and_own, unrolled.in_blocks):
        for found, right in zip(results(function, *tensors), expected, strict=True):
            assert (found - right).norm() <= 1e-12 * right.norm()
    monkeypatch.setattr(unrolled, "has_flash", lambda _: False)
    for found, right in zip(results(causal_and_own, *tensors), expected, strict=True):
        assert torch.equal(found, right)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("blocks", "factor"), [(False, 1.2), (True, 2.5)])  # blocks round their scores to bf16
def test_bf16_is_hardly_further_from_the_truth_than_the_dense_mask(
    device: str, blocks: bool, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unrolled, "prefers_blocks", lambda _: blocks)
    tensors = drawn((2, 4, 2, 130, 64, 4), torch.bfloat16, device)
    assert unrolled.has_flash(tensors[0])
    right = results(dense, *(tensor.detach().double().requires_grad_() for tensor in tensors))
    for found, masked, true in zip(results(causal_and_own, *tensors), results(dense, *tensors), right, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.double() - true).norm() < factor * (masked.double() - true).norm()


def test_gradients_are_those_of_finite_differences() -> None:
    *given, _ = drawn((1, 2, 1, 3, 4, 3), torch.float64)
    assert torch.autograd.gradcheck(causal_and_own, given)


def test_shapes_and_layouts_are_told_as_they_are() -> None:
    query, key, value, grad = (tensor.detach() for tensor in drawn((2, 4, 4, 12, 8, 3), torch.float32))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(unrolled._forward_op, (query, key, value), test_utils=tests)
    out, joint, *seeds = unrolled._forward_op(query, key, value)
    torch.library.opcheck(unrolled._backward_op, (grad, query, key, value, out, joint, *seeds), test_utils=tests)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo looks at it of every input
def test_compiled_equals_eager() -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    # Two layers and a module: with the flash kernel alone opaque to the compiler these gradients were wrong.
    shape = ModelConfig(31, context_length=40, num_layers=1, hidden_size=16, num_heads=2)
    model = RecycleGPT(shape, RecycleConfig(num_layers=2)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    views = torch.randint(31, (3, 2, 6))

    def gradients() -> Tensor:
        model.zero_grad()
        states = model.states(views, num_unrolled=2)
        torch.stack(states.recycled_KBTC).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    eager = gradients()
    assert model.recyclable is not None
    model.recyclable.compile()
    assert (gradients() - eager).norm() < 1e-12 * eager.norm()


def test_on_cuda_the_kernels_are_called_as_they_want_to_be() -> None:
    # Checked against PyTorch's own descriptions of the kernels; their results need a device (above).
    with FakeTensorMode(), torch.no_grad():
        q, k, v = (torch.empty(2, 64, 4, 32, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
        out, lse, *seeds = unrolled._flash(q, k, v)
        assert (out.shape, lse.shape, lse.dtype) == (q.shape, q.shape[:3], torch.float32)
        grads = unrolled._flash_backward(out, q, k, v, out, lse, *seeds)
        assert [grad.shape for grad in grads] == [q.shape] * 3
        assert not unrolled.has_flash(q.float())


def test_unrolled_training_takes_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ModelConfig(31, context_length=40, num_layers=1, hidden_size=24, num_heads=4, num_kv_heads=2)
    model = RecycleGPT(shape, RecycleConfig(num_layers=2)).double()
    torch.nn.init.normal_(model.recyclable.layers[0].self_attn.o_proj.weight)  # type: ignore[union-attr,arg-type]
    views = torch.randint(31, (4, 2, 12))
    calls = []

    def counted(*tensors: Tensor) -> Tensor:
        calls.append(tensors[1].shape[2] // tensors[0].shape[2])
        return causal_and_own(*tensors)

    monkeypatch.setattr("recyclegpt.models.layers.causal_and_own", counted)
    states = model.states(views, num_unrolled=3)
    assert calls == [2, 2, 3, 3]
    # One document: the mask that documents need, which is as causal.
    masked = model.states(views, torch.zeros_like(views), num_unrolled=3)
    assert len(calls) == 4
    torch.testing.assert_close(torch.stack(states.recycled_KBTC), torch.stack(masked.recycled_KBTC))
