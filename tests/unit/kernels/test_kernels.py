"""Each C++ operator against torch in fp64, and bit for bit against itself with other rows beside it."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recyclegpt import kernels
from recyclegpt.decoding import Decoder, Verified, fuse
from recyclegpt.decoding.cpu_layers import KernelLayer
from recyclegpt.decoding.sampling import exponential_noise
from recyclegpt.errors import ConfigError
from recyclegpt.kernels import build
from recyclegpt.models.rope import Rotary, rotate
from tests.unit.decoding.test_exactness import random_model

pytestmark = pytest.mark.skipif(
    not kernels.usable(torch.device("cpu"), torch.float32), reason="there is no C++ compiler here"
)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
DTYPES = sorted(TOLERANCE, key=str)


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.int8),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.int8),
    ],
)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 2), (16, 34), (17, 64), (40, 130), (100, 1024)])
def test_linear(dtype: torch.dtype, weights: torch.dtype, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs)
    weight = torch.randn(outputs, inputs)
    scale = None
    if weights == torch.int8:
        whole, scale = kernels.quantise(weight)
        packed, exact = kernels.pack(whole), whole.double() * scale[:outputs, None].double()
    else:
        weight = weight.to(weights)
        packed, exact = kernels.pack(weight), weight.double()
    for rows in range(1, 20):
        x, plus = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
        expected = (rounded_to_int8(x) if weights == torch.int8 else x.double()) @ exact.T
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


def rounded_to_int8(x_nI: torch.Tensor) -> torch.Tensor:
    """Each group of 32 inputs on its own grid of 255 steps, in fp64."""
    inputs = x_nI.shape[1]
    groups = F.pad(x_nI.float(), (0, -inputs % 32)).view(len(x_nI), -1, 32)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    whole = (groups * (127 / largest.clamp(min=1e-30))).round()
    return (whole.double() * (largest / 127).double()).view(len(x_nI), -1)[:, :inputs]


def test_rounding_rows_to_int8_costs_less_than_rounding_the_weights() -> None:
    x, weight = torch.randn(8, 1536), torch.randn(256, 1536)
    whole, scale = kernels.quantise(weight)
    of_rounded_weights = x.double() @ (whole.double() * scale[:, None].double()).T
    found = kernels.linear(x, kernels.pack(whole), 256, scale).double()
    assert (found - of_rounded_weights).norm() < (of_rounded_weights - x.double() @ weight.double().T).norm()


def test_linear_keeps_nan_and_infinity_in_their_row() -> None:
    packed = kernels.pack(torch.ones(20, 8))
    x = torch.ones(3, 8)
    x[0, 3], x[2, 1] = torch.nan, torch.inf
    y = kernels.linear(x, packed, 20)
    assert y[0].isnan().all()
    assert (y[1] == 8).all()
    assert y[2].isinf().all()
    assert kernels.linear(x.bfloat16(), kernels.pack(torch.ones(20, 8).bfloat16()), 20)[0].isnan().all()
    whole, scale = kernels.quantise(torch.ones(20, 8))
    y = kernels.linear(x, kernels.pack(whole), 20, scale)
    assert not y[[0, 2]].isfinite().any()
    assert y[1].allclose(torch.tensor(8.0))
    assert kernels.linear(torch.full((1, 8), 1e-39), kernels.pack(whole), 20, scale).abs().max() < 1e-35


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
@pytest.mark.parametrize("width", [2, 16, 50, 768])
def test_rms_norm(dtype: torch.dtype, width: int) -> None:
    weight = torch.randn(width).to(dtype)
    # The smaller rows are of the size of the epsilon's root, where leaving it out would show.
    x = (torch.randn(7, width) * torch.logspace(-4, 2, 7)[:, None]).to(dtype)
    found = kernels.rms_norm(x, weight, 1e-5)
    expected = F.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=1e-7)
    assert torch.equal(torch.cat([kernels.rms_norm(x[n : n + 1], weight, 1e-5) for n in range(7)]), found)
    x[2, width // 2] = torch.nan
    assert torch.equal(kernels.rms_norm(x, weight, 1e-5).isnan().all(dim=1), torch.arange(7) == 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 16, 50, 768])
def test_swiglu(dtype: torch.dtype, width: int) -> None:
    gate = torch.stack([torch.randn(width), *[torch.linspace(-size, size, width) for size in (1, 30, 120, 1e30)]])
    both = torch.cat([gate, torch.randn(5, width)], dim=1).to(dtype)
    found = kernels.swiglu(both)
    gate, up = both.double().chunk(2, dim=1)
    torch.testing.assert_close(found.double(), F.silu(gate) * up, rtol=TOLERANCE[dtype], atol=1e-7)
    assert torch.equal(torch.cat([kernels.swiglu(both[n : n + 1]) for n in range(5)]), found)
    both[1, 0], both[2, 2 * width - 1], both[3, width - 1] = torch.nan, torch.nan, torch.inf
    again = kernels.swiglu(both)
    assert again[1, 0].isnan()
    assert again[2, width - 1].isnan()
    assert again[3, width - 1].isinf()
    untouched = torch.ones(5, width, dtype=torch.bool)
    untouched[1, 0] = untouched[2, width - 1] = untouched[3, width - 1] = False
    assert torch.equal(again[untouched], found[untouched])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 16, 50, 4096])
def test_most_likely_is_the_first_of_the_largest(dtype: torch.dtype, width: int) -> None:
    x = torch.randn(40, width).mul(3).round().to(dtype)  # ties in most rows
    x[1], x[2], x[3] = -torch.inf, 0.0, -1.0
    x[2, ::2] = -0.0
    x[4, width // 2] = torch.nan
    x[5, -1] = torch.inf
    first = (x == x.amax(dim=-1, keepdim=True)).int().argmax(dim=-1)
    first[4] = width // 2
    assert torch.equal(kernels.most_likely(x), first)


def test_exponential_noise_is_that_of_torchs_operators() -> None:
    keys = torch.randint(2**32, (7, 3, 2))
    found = exponential_noise(keys, torch.arange(1003))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "are_loaded", lambda: False)
        expected = exponential_noise(keys, torch.arange(1003))
    decides = expected < 1  # torch takes the large ones from a difference in fp32
    torch.testing.assert_close(found[decides], expected[decides], rtol=3e-6, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(1, 1, 2), (4, 2, 12), (6, 3, 64)])
def test_rotate_store(dtype: torch.dtype, heads: int, kv_heads: int, width: int) -> None:
    slots = 30
    rotary = Rotary(width, 10_000.0, slots)
    qkv = torch.randn(2, 3, heads + 2 * kv_heads, width).to(dtype)
    positions = torch.tensor([[0, 1, 2], [27, 28, 29]])
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_keeps_nan_with_those_who_see_it(dtype: torch.dtype) -> None:
    q, (key, value) = torch.randn(2, 3, 4, 8).to(dtype), torch.randn(2, 2, 2, 20, 8).to(dtype)
    positions = torch.tensor([[4, 5, 6], [10, 11, 12]])
    clean = kernels.attend(q, key, value, positions)
    q[0, 1, 2, 5] = torch.nan
    key[1, 0, 3, 0] = torch.nan
    value[0, 1, 0, 7] = torch.inf
    found = kernels.attend(q, key, value, positions)
    changed = torch.zeros(2, 3, 4, 8, dtype=torch.bool)
    changed[0, 1, 2] = True  # that query alone
    changed[1, :, :2] = True  # every query of that row's first two heads, which share the keys
    assert found[changed].isnan().all()
    assert found[0, :, 2:, 7].isfinite().logical_not().all()
    changed[0, :, 2:, 7] = True
    assert torch.equal(found[~changed], clean[~changed])


@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_gives_no_weight_to_a_later_slot(dtype: torch.dtype) -> None:
    """Not even the smallest number: the queries that may not see it are computed with one that may."""
    q, (key, value) = torch.randn(1, 4, 2, 24).to(dtype), torch.randn(2, 1, 2, 20, 24).to(dtype)
    positions = torch.tensor([[4, 5, 6, 7]])
    value[0, :, 6:8] = 3e38
    found = kernels.attend(q, key, value, positions)
    assert torch.equal(found[:, :2], kernels.attend(q[:, :2].contiguous(), key, value, positions[:, :2].contiguous()))
    assert found[:, :2].abs().max() < 10
    assert (found[:, 2:] > 1e30).all()


def test_two_threads_compute_what_one_does() -> None:
    """Where the work is cut does not show in a single bit."""
    x = torch.randn(70, 1024)
    weight, packed = torch.randn(1024), kernels.pack(torch.randn(200, 1024))
    q, (key, value) = torch.randn(3, 9, 4, 24), torch.randn(2, 3, 2, 50, 24)
    positions = torch.arange(9).expand(3, 9).contiguous() + 20
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(
            [
                kernels.linear(x, packed, 200),
                kernels.rms_norm(x, weight, 1e-5),
                kernels.swiglu(x),
                kernels.attend(q, key, value, positions),
            ]
        )
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


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


def test_decoding_goes_on_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(1).float()
    expected = Decoder.optimised(model, use_kernels=False).generate([[1, 2, 3]], Verified(2), 15).tokens
    assert isinstance(fuse(model).backbone.layers[0], KernelLayer)
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    monkeypatch.setenv("RECYCLEGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "load", functools.cache(build.load.__wrapped__))
    monkeypatch.setattr(kernels, "_loaded", functools.cache(kernels._loaded.__wrapped__))
    with pytest.warns(UserWarning, match="torch's own kernels"):
        fuse(model)
    # Told once: a second warning would be an error here.
    decoder = Decoder.optimised(model)
    assert not isinstance(decoder.model.backbone.layers[0], KernelLayer)
    assert decoder.generate([[1, 2, 3]], Verified(2), 15).tokens == expected
    with pytest.raises(ConfigError, match="int8"):
        fuse(model, torch.int8)


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text(
        "#!/bin/sh\necho 'In file included from x' >&2\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    with pytest.raises(build.KernelsUnavailableError, match=r"cxx failed: x\.cpp:1: error: no such thing"):
        build._compile(str(compiler), tmp_path / "built" / "kernels.so")
    assert not list((tmp_path / "built").iterdir())
    assert not list((tmp_path / "built").iterdir())
    with pytest.raises(build.KernelsUnavailableError, match="cannot be compiled in"):
        build._compile(str(compiler), compiler / "kernels.so")
    with pytest.raises(build.KernelsUnavailableError, match="there is no compiler /nonexistent/c"):
        build._compile("/nonexistent/c++ -O1", tmp_path / "built" / "kernels.so")
    compiler.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(build.KernelsUnavailableError, match="cxx --quick failed: exit code 3"):
        build._compile(f"{compiler} --quick", tmp_path / "built" / "kernels.so")


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\nexec sleep 30\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "TIMEOUT_S", 0.1)
    with pytest.raises(build.KernelsUnavailableError, match="timed out"):
        build._compile(str(compiler), tmp_path / "built" / "kernels.so")
    assert not list((tmp_path / "built").iterdir())


def test_kernels_are_compiled_once_for_what_they_are_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    build.load()
    monkeypatch.setattr(build, "_compile", refuse)
    build.load.__wrapped__()
    keys = [build._key("g++"), build._key("clang++")]
    source = tmp_path / "vectors.h"
    source.write_bytes(build.SOURCES[-1].read_bytes() + b"\n")
    with monkeypatch.context() as other:
        other.setattr(build, "SOURCES", (*build.SOURCES[:-1], source))
        keys.append(build._key("g++"))
    with monkeypatch.context() as other:
        other.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
        keys.append(build._key("g++"))
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "9.9")
        keys.append(build._key("g++"))
    assert len(set(keys)) == len(keys)
    assert build._key("g++") == keys[0]


@pytest.mark.parametrize("damage", ["cut short", "another library", "no checksum", "empty"])
def test_a_damaged_library_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    built: list[str] = []

    def compile_again(_: str, library: Path) -> None:
        built.append(library.name)
        raise build.KernelsUnavailableError("stop here")

    whole = build.folder() / f"kernels-{build._key(compiler)}.so"
    build.load()
    monkeypatch.setenv("RECYCLEGPT_CACHE", str(tmp_path))
    library = tmp_path / "kernels" / whole.name
    library.parent.mkdir()
    content = {"cut short": whole.read_bytes()[:100_000], "another library": b"not a library", "empty": b""}
    library.write_bytes(content.get(damage, whole.read_bytes()))
    if damage != "no checksum":
        library.with_suffix(".sha256").write_bytes(whole.with_suffix(".sha256").read_bytes())
    monkeypatch.setattr(build, "_compile", compile_again)
    with pytest.raises(build.KernelsUnavailableError, match="stop here"):
        build.load.__wrapped__()  # a library cut short would end this process, not raise
    assert built == [library.name]


def test_two_builds_at_once_leave_one_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    (tmp_path / "one.cpp").write_text("int one() { return 1; }")
    monkeypatch.setattr(build, "SOURCES", (tmp_path / "one.cpp",))
    library = tmp_path / "built" / "kernels.so"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: build._compile(compiler, library), range(2)))
    assert sorted(path.name for path in library.parent.iterdir()) == ["kernels.sha256", "kernels.so"]
