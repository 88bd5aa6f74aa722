"""Each C++ operator against torch in fp64, and bit for bit against itself with other rows beside it."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recyclegpt.decoding import kernels
from recyclegpt.decoding.kernels import build
from recyclegpt.models.layers import Rotary, rotate

pytestmark = pytest.mark.skipif(
    not kernels.usable(torch.device("cpu"), torch.float32), reason="there is no C++ compiler here"
)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
DTYPES = sorted(TOLERANCE, key=str)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", ["own", "int8"])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 2), (16, 34), (17, 64), (40, 130), (100, 1024)])
def test_linear(dtype: torch.dtype, weights: str, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs)
    weight = torch.randn(outputs, inputs).to(dtype)
    scale = None
    if weights == "int8":
        whole, scale = kernels.quantise(weight)
        packed, exact = kernels.pack(whole), whole.double() * scale[:outputs, None].double()
    else:
        packed, exact = kernels.pack(weight), weight.double()
    for rows in (1, 2, 3, 7, 8, 9, 19):
        x, plus = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
        expected = x.double() @ exact.T
        size = expected.abs().max()
        for added in (None, plus):
            found = kernels.linear(x, packed, outputs, scale, added)
            wanted = expected if added is None else expected + added.double()
            assert found.dtype == dtype
            assert float((found.double() - wanted).abs().max()) < TOLERANCE[dtype] * float(size + 4)
            alone = torch.cat(
                [
                    kernels.linear(x[n : n + 1], packed, outputs, scale, None if added is None else added[n : n + 1])
                    for n in range(rows)
                ]
            )
            assert torch.equal(found, alone), "a row depends on the rows beside it"


def test_linear_keeps_nan_and_infinity_in_their_row() -> None:
    packed = kernels.pack(torch.ones(20, 8))
    x = torch.ones(3, 8)
    x[0, 3], x[2, 1] = torch.nan, torch.inf
    y = kernels.linear(x, packed, 20)
    assert y[0].isnan().all()
    assert (y[1] == 8).all()
    assert y[2].isinf().all()
    assert kernels.linear(x.bfloat16(), kernels.pack(torch.ones(20, 8).bfloat16()), 20)[0].isnan().all()


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="33 is odd"):
        kernels.pack(torch.ones(4, 33))


def test_quantised_weights_are_off_by_half_a_step() -> None:
    weight = torch.randn(10, 32) * torch.logspace(-3, 3, 10)[:, None]
    weight[4] = 0
    whole, step = kernels.quantise(weight)
    assert len(step) == 16
    assert ((whole * step[:10, None] - weight).abs() <= step[:10, None] * 0.5001).all()
    assert whole.abs().amax(dim=1).tolist() == [127] * 4 + [0] + [127] * 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 4), (4, 2, 8), (3, 1, 16), (6, 2, 24), (8, 8, 64)])
def test_attend(dtype: torch.dtype, heads: int, kv_heads: int, width: int) -> None:
    torch.manual_seed(width)
    for batch, queries, slots in ((1, 1, 1), (1, 1, 37), (2, 9, 41), (3, 5, 130)):
        q = torch.randn(batch, queries, heads, width).to(dtype)
        key, value = torch.randn(2, batch, kv_heads, slots, width).to(dtype)
        start = torch.randint(0, slots - queries + 1, (batch, 1))
        positions = start + torch.arange(queries)
        mask = torch.arange(slots) <= positions[:, None, :, None]
        expected = F.scaled_dot_product_attention(
            q.transpose(1, 2).double(), key.double(), value.double(), attn_mask=mask, enable_gqa=True
        ).transpose(1, 2)
        # what lies beyond a query's position may be anything that is a number
        for row in range(batch):
            key[row, :, int(positions[row, -1]) + 1 :] = 1e4
            value[row, :, int(positions[row, -1]) + 1 :] = -1e4
        found = kernels.attend(q, key, value, positions)
        torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        for row in range(batch):
            for t in range(queries):
                alone = kernels.attend(
                    q[row : row + 1, t : t + 1].contiguous(),
                    key[row : row + 1],
                    value[row : row + 1],
                    positions[row : row + 1, t : t + 1].contiguous(),
                )
                assert torch.equal(alone[0, 0], found[row, t]), "a query depends on those beside it"


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_and_swiglu(dtype: torch.dtype) -> None:
    for width in (2, 16, 50, 768):
        x, weight = torch.randn(5, width).to(dtype), torch.randn(width).to(dtype)
        expected = F.rms_norm(x.double(), (width,), weight.double(), 1e-5)
        torch.testing.assert_close(
            kernels.rms_norm(x, weight, 1e-5).double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
        both = torch.cat([torch.linspace(-120, 120, width).expand(3, -1), torch.randn(3, width)], dim=1).to(dtype)
        gate, up = both.double().chunk(2, dim=1)
        torch.testing.assert_close(
            kernels.swiglu(both).double(), F.silu(gate) * up, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_store(dtype: torch.dtype) -> None:
    heads, kv_heads, width, slots = 4, 2, 12, 30
    rotary = Rotary(width, 10_000.0, slots)
    qkv = torch.randn(2, 3, heads + 2 * kv_heads, width).to(dtype)
    positions = torch.tensor([[4, 5, 6], [20, 21, 22]])
    key, value = torch.full((2, 2, kv_heads, slots, width), 7.0).to(dtype)
    q = kernels.rotate_store(qkv, rotary.cos_SD, rotary.sin_SD, positions, key, value)
    cos, sin = rotary(positions)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(q, rotate(qkv[:, :, :heads], cos, sin), **tolerance)
    expected_key = rotate(qkv[:, :, heads : heads + kv_heads], cos, sin)
    for row in range(2):
        for t, position in enumerate(positions[row].tolist()):
            torch.testing.assert_close(key[row, :, position], expected_key[row, t], **tolerance)
            assert torch.equal(value[row, :, position], qkv[row, t, heads + kv_heads :])
    untouched = torch.ones(2, slots, dtype=torch.bool).scatter(1, positions, False)
    for row in range(2):
        assert (key[row][:, untouched[row]] == 7).all()
        assert (value[row][:, untouched[row]] == 7).all()


def test_without_a_compiler_one_warning_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    monkeypatch.setenv("RECYCLEGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "load", build.load.__wrapped__)
    with pytest.warns(UserWarning, match="torch's own kernels.*/nonexistent/c\\+\\+"):
        assert not kernels._loaded.__wrapped__()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="install g\\+\\+"):
        assert not kernels._loaded.__wrapped__()


def test_a_broken_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLEGPT_CACHE", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    compiler = build._compiler()
    assert compiler is not None
    (tmp_path / "kernels" / f"kernels-{build._key(compiler)}.so").write_bytes(b"not a library")
    with pytest.raises(build.KernelsUnavailableError, match="delete it"):
        build.load.__wrapped__()


def test_two_builds_at_once_leave_one_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = build._compiler()
    assert compiler is not None
    monkeypatch.setattr(build, "SOURCES", (Path(build.__file__).with_name("layer.cpp"),))  # one file: seconds less
    library = tmp_path / "kernels.so"
    with ThreadPoolExecutor(2) as pool, warnings.catch_warnings():
        list(pool.map(lambda _: build._compile(compiler, library), range(2)))
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.so"]
