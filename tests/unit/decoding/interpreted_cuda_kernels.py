"""The kernels for CUDA in Triton's interpreter, on CPU tensors: each against torch in fp64, and bit for bit against
itself with other rows beside it.

Run by `test_cuda_kernels.py` in a process of its own, since Triton reads at its import whether it interprets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton.runtime.interpreter
from torch import Tensor

from recyclegpt.decoding import Alternating, Autoregressive, Decoder, Verified, cuda_kernels, fuse, kernels
from recyclegpt.decoding.cuda_kernels import operators
from recyclegpt.decoding.cuda_kernels.sizes import Sizes
from recyclegpt.decoding.triton_layer import TritonGPT, TritonLayer
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT, StaticCache
from recyclegpt.models.rope import Rotary, rotate

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
DTYPES = sorted(TOLERANCE, key=str)
SIZES = (Sizes(16, parts=2, depth=16, stages=2), Sizes(8, parts=4, depth=32, stages=3))


def widened(data: np.ndarray, dtype: Any) -> np.ndarray:
    """The interpreter keeps bf16 as its sixteen bits."""
    return (data.astype(np.uint32) << 16).view(np.float32) if str(dtype.scalar) == "bf16" else data


@pytest.fixture(autouse=True, scope="module")
def _interpreter() -> Iterator[None]:
    """It multiplies the bits of bf16 as if they were whole numbers, and prepares the language anew for each call."""
    interpreter = triton.runtime.interpreter
    prepare, prepared = interpreter._patch_lang, set()

    def prepare_once(function: Any) -> Any:
        if function.__module__ not in prepared:
            prepared.add(function.__module__)
            prepare(function)
            # Triton 3.6's own stumbles over a scalar of shape (1,), which NumPy no longer converts from 2.5 on.
            triton.language.core.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
        return interpreter._LangPatchScope()

    def dot(builder: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        product = np.matmul(widened(a.data, a.dtype), widened(b.data, b.dtype), dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", prepare_once)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
        # Looking for overflows of whole numbers takes a third of the time.
        options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)
        yield


def close(found: Tensor, expected: Tensor) -> None:
    assert float((found.double() - expected).norm() / expected.norm()) < TOLERANCE[found.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", SIZES)
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 48), (16, 128), (21, 176)])
def test_linear(dtype: torch.dtype, how: Sizes, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs)
    weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
    # The smaller rows are of the size of the epsilon's root, where leaving it out would show.
    x = (torch.randn(16, inputs) * torch.logspace(-3, 2, 16)[:, None]).to(dtype)
    plus = torch.randn(16, outputs).to(dtype)
    close(operators.linear(x, weight, how=how), x.double() @ weight.double().T)
    normed = F.rms_norm(x.double(), (inputs,), eps=1e-5)
    found = operators.linear(x, weight, bias, plus, 1e-5, how=how)
    close(found, F.linear(normed, weight.double(), bias.double()) + plus.double())
    for rows in (slice(0, 1), slice(3, 5), slice(15, 16)):
        beside = operators.linear(x[rows], weight, bias, plus[rows], 1e-5, how=how)
        assert torch.equal(beside, found[rows]), "a row depends on the rows beside it"


def test_more_rows_than_a_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="17 rows, 16 at most"):
        operators.linear(torch.ones(17, 16), torch.ones(16, 16))


def test_sizes_that_do_not_divide_are_refused() -> None:
    """A program of pairs would reach into the next head, or from the gate into up."""
    with pytest.raises(ValueError, match="16 pairs a program do not divide 24"):
        operators.gated(torch.ones(1, 16), torch.ones(48, 16), how=Sizes(32))
    cache, table = torch.zeros(1, 1, 4, 32), torch.zeros(4, 32)
    with pytest.raises(ValueError, match="32 pairs a program do not divide 16"):
        operators.rotate_store(
            torch.ones(1, 16), torch.ones(96, 16), None, None, table, table, torch.zeros(1, 1), cache, cache, Sizes(64)
        )


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, of a product with infinity
def test_nan_and_infinity_stay_in_their_row() -> None:
    x = torch.ones(3, 32)
    x[0, 3], x[2, 1] = torch.nan, torch.inf
    y = operators.linear(x, torch.ones(20, 32), how=SIZES[0])
    assert y[0].isnan().all()
    assert (y[1] == 32).all()
    assert y[2].isinf().all()
    assert operators.linear(x, torch.ones(20, 32), eps=1e-5, how=SIZES[0])[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", SIZES)
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_gated(dtype: torch.dtype, how: Sizes, eps: float | None) -> None:
    inputs, width = 80, 48
    weight, bias = torch.randn(2 * width, inputs).to(dtype) / 4, torch.randn(2 * width).to(dtype)
    x = torch.randn(3, inputs).to(dtype) * 3
    normed = x.double() if eps is None else F.rms_norm(x.double(), (inputs,), eps=eps)
    for added in (None, bias):
        found = operators.gated(x, weight, added, eps, how=how)
        gate, up = F.linear(normed, weight.double(), None if added is None else added.double()).chunk(2, dim=1)
        close(found, F.silu(gate) * up)
        assert torch.equal(operators.gated(x[1:2], weight, added, eps, how=how), found[1:2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(2, 1, 32), (3, 3, 64)])
def test_rotate_store(dtype: torch.dtype, heads: int, kv_heads: int, width: int) -> None:
    inputs, slots, how = 48, 30, SIZES[0]
    rotary = Rotary(width, 10_000.0, slots)
    weight = torch.randn((heads + 2 * kv_heads) * width, inputs).to(dtype) / 7
    bias = torch.randn(len(weight)).to(dtype)
    x = torch.randn(6, inputs).to(dtype)
    positions = torch.tensor([[0, 1, 2], [27, 28, 29]])
    key, value = torch.full((2, 2, kv_heads, slots, width), 7.0).to(dtype)
    tables = rotary.cos_SD, rotary.sin_SD
    q = operators.rotate_store(x, weight, bias, 1e-5, *tables, positions, key, value, how)
    qkv = F.linear(F.rms_norm(x.double(), (inputs,), eps=1e-5), weight.double(), bias.double()).view(2, 3, -1, width)
    cos, sin = rotary(positions)
    close(q, rotate(qkv[:, :, :heads], cos, sin))
    row = torch.arange(2)[:, None]
    close(key.transpose(1, 2)[row, positions], rotate(qkv[:, :, heads : heads + kv_heads], cos, sin))
    close(value.transpose(1, 2)[row, positions], qkv[:, :, heads + kv_heads :])
    untouched = torch.ones(2, slots, dtype=torch.bool).scatter(1, positions, False)
    assert (key.transpose(1, 2)[untouched] == 7).all()
    assert (value.transpose(1, 2)[untouched] == 7).all()
    # One row alone, without bias and norm.
    one_key, one_value = torch.zeros_like(key[:1]), torch.zeros_like(value[:1])
    q = operators.rotate_store(x[4:5], weight, None, None, *tables, positions[1:, 1:2], one_key, one_value, how)
    qkv = F.linear(x[4:5].double(), weight.double()).view(1, 1, -1, width)
    close(q, rotate(qkv[:, :, :heads], cos[1:, 1:2], sin[1:, 1:2]))
    close(one_value[:, :, 28], qkv[:, 0, heads + kv_heads :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "batch", "queries", "slots"),
    [(4, 4, 32, 1, 1, 1), (4, 2, 32, 2, 3, 50), (6, 1, 32, 1, 4, 300), (1, 1, 64, 3, 9, 33)],
)
def test_attend(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    width: int,
    batch: int,
    queries: int,
    slots: int,
) -> None:
    monkeypatch.setattr(operators, "PIECE", 16)  # so that 300 slots are more pieces than are combined at once
    torch.manual_seed(width)
    q = torch.randn(batch, queries, heads, width).to(dtype)
    key, value = torch.randn(2, batch, kv_heads, slots, width).to(dtype)
    start = torch.randint(0, slots - queries + 1, (batch, 1))
    start[-1] = slots - queries
    positions = start + torch.arange(queries)
    mask = torch.arange(slots) <= positions[:, None, :, None]
    expected = F.scaled_dot_product_attention(
        q.transpose(1, 2).double(), key.double(), value.double(), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    # What lies beyond the last query may be anything.
    for row in range(batch):
        key[row, :, int(positions[row, -1]) + 1 :] = torch.nan
        value[row, :, int(positions[row, -1]) + 1 :] = torch.nan
    found = operators.attend(q, key, value, positions, slots)
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for row, t in ((0, 0), (batch - 1, queries - 1)):
        alone = operators.attend(
            q[row : row + 1, t : t + 1],
            key[row : row + 1],
            value[row : row + 1],
            positions[row : row + 1, t : t + 1],
            int(positions[row, t]) + 1,
        )
        assert torch.equal(alone[0, 0], found[row, t]), "a query depends on those beside it, or on what may be read"


def test_attend_gives_no_weight_to_a_later_slot() -> None:
    q, (key, value) = torch.randn(1, 4, 2, 32), torch.randn(2, 1, 2, 20, 32)
    positions = torch.tensor([[4, 5, 6, 7]])
    value[0, :, 6:8] = 3e38
    found = operators.attend(q, key, value, positions, 20)
    assert found[:, :2].abs().max() < 10
    assert (found[:, 2:] > 1e30).all()


# --- whole models ---

VARIANTS = {
    "plain": (ModelConfig(16, 96, 1, 32, 1, intermediate_size=48), RecycleConfig(1)),
    "grouped heads, all biases": (
        ModelConfig(
            16, 96, 1, 48, 2, num_kv_heads=1, head_dim=32, intermediate_size=32, qkv_bias=True, o_bias=True,
            mlp_bias=True, tie_embeddings=False,
        ),
        RecycleConfig(1, first_input_norm=False, final_norm=False),
    ),
    "Qwen3's norms": (ModelConfig(16, 96, 1, 32, 1, intermediate_size=16, qk_norm=True), None),
}  # fmt: skip


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fuse` takes the kernels for CUDA on a CPU; few programs, since each takes the interpreter milliseconds."""
    monkeypatch.setattr(cuda_kernels, "usable", lambda *_: True)
    monkeypatch.setattr(kernels, "usable", lambda *_: False)
    monkeypatch.setattr(operators, "sizes_of", lambda *_, **__: Sizes(32, parts=1, depth=64, stages=2))


def made(variant: str) -> RecycleGPT:
    torch.manual_seed(0)
    model = RecycleGPT(*VARIANTS[variant]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@torch.no_grad()
def states(model: RecycleGPT, tokens_BT: Tensor, widths: list[int]) -> Tensor:
    """Logits of both kinds, read through the caches so many tokens at a time."""
    B, begin, logits = len(tokens_BT), 0, []
    cache = StaticCache(model.config, model.config.num_layers, B, 30, model.dtype)
    module_cache = StaticCache(model.config, model.recycle_config.num_layers, B, 30, model.dtype)
    for width in widths:
        end = begin + width
        positions = torch.arange(begin, end).expand(B, -1)
        hidden = model.read(tokens_BT[:, begin:end], positions, cache=cache, num_read=end)
        both = [model.classify(hidden)]
        if model.recyclable is not None:
            following = tokens_BT[:, begin + 1 : end + 1]
            both.append(model.classify(model.recycle(following, hidden, positions, cache=module_cache, num_read=end)))
        logits.append(torch.cat(both, dim=-1))
        begin = end
    return torch.cat(logits, dim=1)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_equals_plain(variant: str) -> None:
    model = made(variant)
    tokens = torch.randint(16, (2, 14), generator=torch.Generator().manual_seed(1))
    exact = states(made(variant).double(), tokens, [13])
    fused = fuse(model)
    assert isinstance(fused, TritonGPT)
    assert all(isinstance(layer, TritonLayer) for layer in fused.backbone.layers)
    assert fused.backbone.layers[-1].down_proj.then is fused.lm_head.weight
    # 18 rows at first are too many for the kernels: torch's operators fill the cache that they read.
    close(states(fused, tokens, [9, 1, 3]), exact)
    half = states(fuse(model, torch.bfloat16), tokens, [9, 1, 3])
    # bf16 has eight bits: a few hundredths of the logits' size after some layers
    assert float((half.double() - exact).norm() / exact.norm()) < 0.03


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("variant", "dtype"), [("plain", torch.float32), ("grouped heads, all biases", torch.bfloat16)]
)
def test_several_tokens_at_once_are_what_they_are_one_by_one(variant: str, dtype: torch.dtype) -> None:
    """To the last bit, in one row of text or in two: so verified text equals autoregressive text.

    fp32 shows what bf16 would round away in most places, though not in all.
    """
    fused = fuse(made(variant), dtype)
    tokens = torch.randint(16, (2, 6), generator=torch.Generator().manual_seed(2))
    together = states(fused, tokens, [2, 3])
    assert torch.equal(states(fused, tokens, [2, 1, 1, 1]), together)
    assert torch.equal(states(fused, tokens[1:], [2, 3]), together[1:])


@pytest.mark.usefixtures("interpreted")
def test_decoding() -> None:
    model = made("plain")
    for strategy in (Verified(2), Alternating(1)):
        expected = Decoder.optimised(model, use_kernels=False).generate([[1, 2, 3]], strategy, 7).tokens
        assert Decoder.optimised(model).generate([[1, 2, 3]], strategy, 7).tokens == expected
    half = Decoder.optimised(model, torch.bfloat16)
    assert isinstance(half.model, TritonGPT)
    written = [half.generate([[1, 2, 3]], strategy, 7).tokens for strategy in (Autoregressive(), Verified(2))]
    assert written[0] == written[1]


@pytest.mark.usefixtures("interpreted")
def test_passes_of_few_rows_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def note(function: Any) -> Any:
        return lambda tokens_BT, *rest, **named: compiled.append(len(tokens_BT)) or function(tokens_BT, *rest, **named)

    monkeypatch.setattr(torch, "compile", note)
    for use_kernels, noted in ((True, [3, 3]), (False, [2, 2, 3, 3])):
        decoder = Decoder.optimised(made("plain"), compile=True, use_kernels=use_kernels)
        for batch in (2, 3):
            tokens = torch.zeros(batch, 8, dtype=torch.long)
            decoder.recycle(tokens, decoder.read(tokens))
        assert compiled == noted
        compiled.clear()


@pytest.mark.usefixtures("interpreted")
def test_inside_of_compiled_code_they_are_torch_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = made("plain"), torch.zeros(1, 3, dtype=torch.long)
    with torch.no_grad():
        expected = fuse(model, use_kernels=False).read(tokens)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.delattr(operators, "linear_kernel")
        close(fuse(model).read(tokens), expected.double())
