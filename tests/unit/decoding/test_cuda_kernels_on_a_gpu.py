"""The kernels for CUDA where there is a GPU (`pytest -m gpu`), at the widths of `paper_1b3`, in bf16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recyclegpt.decoding import Autoregressive, Decoder, Verified, cuda_kernels
from recyclegpt.decoding.cuda_kernels import sizes
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.models.rope import Rotary, rotate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
CUDA = torch.device("cuda")
C, HEADS, D, WIDTH, SLOTS = 1664, 13, 128, 4480, 700


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=CUDA) * scale).bfloat16()


def close(found: Tensor, expected: Tensor) -> None:
    assert float((found.double() - expected).norm() / expected.norm()) < 1e-2


def alike(operator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What the operator makes of the rows x; each row alone, and with early starts, to the last bit the same."""
    found = operator(x)
    for rows in (slice(0, 1), slice(3, 5), slice(7, 16)):
        assert torch.equal(operator(x[rows]), found[rows]), "a row depends on the rows beside it"
    if torch.cuda.get_device_capability() >= (9, 0):
        with sizes.launching(overlap=True):
            for _ in range(20):
                assert torch.equal(operator(x), found)
    return found


@pytest.mark.parametrize(("outputs", "inputs"), [(C, C), (C, WIDTH), (C, 2 * C), (32000, C), (768, 768), (768, 2048)])
def test_linear(outputs: int, inputs: int) -> None:
    from recyclegpt.decoding.cuda_kernels import operators

    weight, x = drawn(outputs, inputs, scale=0.05), drawn(16, inputs)
    close(alike(lambda rows: operators.linear(rows, weight, then=weight), x), x.double() @ weight.double().T)
    bias, plus = drawn(outputs), drawn(16, outputs)
    found = operators.linear(x, weight, bias, plus, 1e-5)
    normed = F.rms_norm(x.double(), (inputs,), eps=1e-5)
    close(found, F.linear(normed, weight.double(), bias.double()) + plus.double())


@pytest.mark.parametrize(("inputs", "width"), [(C, WIDTH), (768, 2048), (1024, 2816)])
def test_gated(inputs: int, width: int) -> None:
    from recyclegpt.decoding.cuda_kernels import operators

    weight, x = drawn(2 * width, inputs, scale=0.05), drawn(16, inputs)
    gate, up = (F.rms_norm(x.double(), (inputs,), eps=1e-5) @ weight.double().T).chunk(2, dim=1)
    close(alike(lambda rows: operators.gated(rows, weight, eps=1e-5), x), F.silu(gate) * up)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(HEADS, HEADS, D), (12, 4, 64)])
def test_rotation_and_attention(heads: int, kv_heads: int, width: int) -> None:
    from recyclegpt.decoding.cuda_kernels import operators

    inputs, queries = heads * width, 4
    rotary = Rotary(width, 10_000.0, SLOTS).to(CUDA)
    weight, x = drawn((heads + 2 * kv_heads) * width, inputs, scale=0.03), drawn(2 * queries, inputs)
    positions = torch.tensor([[3], [SLOTS - queries]], device=CUDA) + torch.arange(queries, device=CUDA)
    key, value = drawn(2, kv_heads, SLOTS, width), drawn(2, kv_heads, SLOTS, width)
    tables = rotary.cos_SD, rotary.sin_SD
    q = operators.rotate_store(x, weight, None, 1e-5, *tables, positions, key, value)
    qkv = F.rms_norm(x.double(), (inputs,), eps=1e-5) @ weight.double().T
    qkv = qkv.view(2, queries, -1, width)
    cos, sin = rotary(positions)
    close(q, rotate(qkv[:, :, :heads], cos, sin))
    row = torch.arange(2, device=CUDA)[:, None]
    close(key.transpose(1, 2)[row, positions], rotate(qkv[:, :, heads : heads + kv_heads], cos, sin))
    close(value.transpose(1, 2)[row, positions], qkv[:, :, heads + kv_heads :])

    mask = torch.arange(SLOTS, device=CUDA) <= positions[:, None, :, None]
    expected = F.scaled_dot_product_attention(
        q.transpose(1, 2).double(), key.double(), value.double(), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    found = operators.attend(q, key, value, positions, SLOTS)
    close(found, expected)
    for t in range(queries):
        alone = operators.attend(q[:1, t : t + 1], key[:1], value[:1], positions[:1, t : t + 1], 256)
        assert torch.equal(alone[0, 0], found[0, t])


@pytest.mark.parametrize("overlap", [False, True])
def test_verified_text_is_autoregressive_text(overlap: bool) -> None:
    """Token for token in bf16, through CUDA graphs."""
    if overlap and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("programmatic dependent launch needs Hopper")
    torch.manual_seed(0)
    config = ModelConfig(4096, 512, 6, 768, 12, num_kv_heads=4, intermediate_size=2048)
    model = RecycleGPT(config, RecycleConfig(1)).to(CUDA).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    assert cuda_kernels.usable(CUDA, torch.bfloat16)
    with sizes.launching(overlap=overlap):
        decoder = Decoder.optimised(model, torch.bfloat16)
        assert hasattr(decoder.model, "max_kernel_rows")
        prompt = torch.randint(4096, (40,)).tolist()
        expected = decoder.generate([prompt], Autoregressive(), 400).tokens
        for num_recycled in (1, 3, 8):
            assert decoder.generate([prompt], Verified(num_recycled), 400).tokens == expected
