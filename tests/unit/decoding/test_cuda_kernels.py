"""The kernels for CUDA without a GPU: what they compute in Triton's interpreter, what the compiler makes of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recyclegpt.decoding import cuda_kernels, fuse
from recyclegpt.decoding.cuda_kernels import sizes
from recyclegpt.decoding.cuda_kernels.sizes import Sizes, sizes_of
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT

HERE = Path(__file__).parent
PAPER = {"C": 1664, "H": 13, "D": 128, "F": 4480, "V": 32000, "S": 2066}
"""`paper_1b3`."""
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}


def needs_triton() -> Any:
    return pytest.importorskip("triton", reason="Triton is not installed; it is made for Linux alone")


def test_what_they_compute() -> None:
    needs_triton()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "interpreted_cuda_kernels.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


class Compiling:
    """Stands in for a kernel: a launch compiles it for a GPU that is not here, with the arguments of that launch."""

    def __init__(self, kernel: Any, capability: int, made: list[Any]) -> None:
        self.kernel, self.capability, self.made = kernel, capability, made

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *arguments: Any, **named: Any) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.compiler import compile as triton_compile

        names = self.kernel.arg_names
        given = dict(zip(names, arguments, strict=False)) | named
        constant = {
            name: given[name]
            for name, parameter in zip(names, self.kernel.params, strict=True)
            if parameter.is_constexpr or given[name] is None
        }
        signature = {name: "constexpr" if name in constant else _type_of(given[name]) for name in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
        options = {name: value for name, value in named.items() if name not in names}
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constant, attrs=aligned)
        self.made.append(triton_compile(source, target=GPUTarget("cuda", self.capability, 32), options=options))


def _type_of(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return POINTERS[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a call compiles for a compute capability: `compiled(90, operators.linear, ...)`."""
    needs_triton()
    from recyclegpt.decoding.cuda_kernels import operators

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def run(capability: int, operator: str, *arguments: Any) -> list[Any]:
        made: list[Any] = []
        with monkeypatch.context() as patch:
            for name in ("linear", "gated", "rotated", "piece", "combine"):
                kernel = getattr(operators, f"{name}_kernel")
                patch.setattr(operators, f"{name}_kernel", Compiling(kernel, capability, made))
            getattr(operators, operator)(*arguments)
        return made

    return run


def on_paper(*shape: str | int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory, its widths those of `paper_1b3`."""
    return torch.empty([PAPER.get(width, width) for width in shape], dtype=dtype, device="meta")  # type: ignore[misc, arg-type]


def spilled(kernel: Any, tmp_path: Path) -> int:
    """Bytes of registers that the assembler has to keep in memory."""
    import triton

    source = tmp_path / "kernel.ptx"
    source.write_text(kernel.asm["ptx"])
    target = re.search(r"\.target (\w+)", kernel.asm["ptx"])
    assert target is not None
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    done = subprocess.run(
        [ptxas, "-v", f"-arch={target[1]}", source, "-o", tmp_path / "kernel.cubin"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert found is not None
    return int(found[1])


x, width = on_paper(2, "C"), 3 * PAPER["C"]
table, positions, cache = (
    on_paper("S", "D", dtype=torch.float32),
    on_paper(1, 2, dtype=torch.int64),
    on_paper(1, "H", "S", "D"),
)
LAUNCHES = {
    "rotate_store": (x, on_paper(width, "C"), None, 1e-5, table, table, positions, cache, cache),
    "attend": (on_paper(1, 2, "H", "D"), cache, cache, positions, 2066),
    "linear": (on_paper(2, "F"), on_paper("C", "F"), None, x),
    "gated": (x, on_paper(2 * PAPER["F"], "C"), None, 1e-5),
}


@pytest.mark.parametrize("operator", LAUNCHES)
def test_what_the_compiler_makes_of_them(operator: str, compiled: Any, tmp_path: Path) -> None:
    for kernel in compiled(90, operator, *LAUNCHES[operator]):
        ptx = kernel.asm["ptx"]
        assert spilled(kernel, tmp_path) == 0
        assert kernel.metadata.shared <= 227 * 1024
        assert "griddepcontrol" not in ptx
        if operator != "attend":
            # Weights come past the registers, 16 bytes at a time, and go into the tensor cores as they lie.
            assert not re.search(r"cp\.async\.c[ag].*\], 0x[48],", ptx)
            assert len(re.findall(r"cp\.async\.cg.*\], 0x10,", ptx)) >= 16
            assert "ldmatrix" in ptx
            assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16" in ptx


def test_a_kernel_may_start_before_the_last_has_ended(compiled: Any, tmp_path: Path) -> None:
    with sizes.launching(overlap=True):
        kernels = compiled(90, "linear", *LAUNCHES["linear"]) + compiled(90, "attend", *LAUNCHES["attend"])
    assert not sizes.launch.overlap
    for kernel in kernels:
        lines = kernel.asm["ptx"].splitlines()
        wait = next(i for i, line in enumerate(lines) if "griddepcontrol.wait" in line)
        after = next(i for i, line in enumerate(lines) if "griddepcontrol.launch_dependents" in line)
        touched = [i for i, line in enumerate(lines) if re.search(r"cp\.async\.c[ag]|(ld|st)\.global", line)]
        assert wait < after
        assert wait < min(touched), "something is read or written before the kernel's turn has come"
        assert kernel.metadata.launch_pdl
        assert spilled(kernel, tmp_path) == 0


def test_a_kernel_fetches_of_the_next_weights(compiled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recyclegpt.decoding.cuda_kernels import operators

    next_weight = on_paper("F", "C")
    launches = (
        ("linear", (*LAUNCHES["linear"], None, next_weight)),
        ("attend", (*LAUNCHES["attend"], (None, next_weight))),
    )
    monkeypatch.setattr(operators, "_can_fetch", lambda _: True)
    with sizes.launching(fetch=True):
        kernels = [kernel for name, arguments in launches for kernel in compiled(90, name, *arguments)]
    for kernel, fetches in zip(kernels, (True, False, True), strict=True):
        assert kernel.asm["ptx"].count("cp.async.bulk.prefetch.L2.global") == fetches
        assert spilled(kernel, tmp_path) == 0
    (kernel,) = compiled(90, *launches[0][:1], *launches[0][1])
    assert "prefetch" not in kernel.asm["ptx"]


def test_on_ampere(compiled: Any, tmp_path: Path) -> None:
    (kernel,) = compiled(80, "linear", *LAUNCHES["linear"])
    assert spilled(kernel, tmp_path) == 0
    assert kernel.metadata.shared <= 163 * 1024


@pytest.mark.parametrize(
    ("outputs", "inputs", "halves"),
    [(width, 1664, 2), (8960, 1664, 2), (1664, 1664, 1), (1664, 4480, 1), (32000, 1664, 1), (2304, 768, 2),
     (768, 768, 1), (768, 2048, 1), (4096, 768, 2), (3072, 1024, 2), (1024, 2816, 1)],
)  # fmt: skip
def test_all_programs_run_at_once(outputs: int, inputs: int, halves: int) -> None:
    """Else the last few would run alone, while most of the memory's bandwidth waits."""
    how = sizes_of(outputs, inputs, halves)
    shared = how.shared_bytes(rows=16 * halves)
    assert shared <= 163 * 1024
    at_once = 132 * (227 * 1024 // (shared + 1024))
    programs = -(-outputs // how.outputs)
    assert programs <= at_once or outputs == 32000
    assert programs >= 96
    # No program of pairs may have rows of two heads, or reach beyond the gate.
    assert halves == 1 or outputs % how.outputs == 0
    under_way = min(programs, 132) * (how.shared_bytes(rows=0))
    assert under_way > 1.5e6


@pytest.mark.parametrize("threads", [32, 1664, 26_624, 10**7])
@pytest.mark.parametrize("weight", [1000, 5_500_000, 30_000_000])
def test_fetched_parts_lie_in_the_weight(weight: int, threads: int) -> None:
    stride, size = sizes.ahead(weight, threads)
    assert 0 <= size <= stride
    assert stride % 128 == size % 128 == 0
    assert (threads - 1) * stride + size <= weight
    if weight > 10**6 and threads < 10**5:
        assert size * threads >= 0.9 * min(weight - 128 * threads, sizes.AHEAD_BYTES)


def test_measured_sizes_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sizes.TUNED, (1664, 4480, 1), Sizes(32))
    assert sizes_of(1664, 4480) == Sizes(32)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"hidden_size": 72, "head_dim": 32}, "hidden_size 72 is no multiple of 16"),
        ({"head_dim": 48}, "head_dim 48 is not 32, 64, 128 or 256"),
        ({"head_dim": 512, "intermediate_size": 40}, "intermediate_size 40 is no multiple of 16, head_dim 512"),
        ({"head_dim": 32}, ""),
    ],
)
def test_shapes_that_do_not_fit_are_decoded_by_torch(
    changed: dict[str, int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(**({"vocab_size": 16, "hidden_size": 64, "num_heads": 2, "num_layers": 1} | changed))
    assert why in cuda_kernels.unfitting(config)
    assert bool(why) == bool(cuda_kernels.unfitting(config))
    if why:
        monkeypatch.setattr(cuda_kernels, "usable", lambda *_: True)
        monkeypatch.setattr("recyclegpt.decoding.kernels.usable", lambda *_: False)
        with pytest.warns(UserWarning, match=f"torch's own kernels.*{why}"):
            fused = fuse(RecycleGPT(config, RecycleConfig(1)))
        assert type(fused) is RecycleGPT


def test_where_triton_does_not_work_one_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(cuda_kernels, "_loaded", cuda_kernels._loaded.__wrapped__)
    with pytest.warns(UserWarning, match="torch's own kernels.*Triton does not work here.*C compiler"):
        assert not cuda_kernels.usable(torch.device("cuda"), torch.bfloat16)
    # Nothing is tried where the kernels are not for that device.
    assert not cuda_kernels.usable(torch.device("cpu"), torch.bfloat16)
    assert not cuda_kernels.usable(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert not cuda_kernels.usable(torch.device("cuda"), torch.bfloat16)


def test_int8_stays_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "usable", lambda *_: True)
    monkeypatch.setattr("recyclegpt.decoding.kernels.usable", lambda *_: False)
    with pytest.raises(ConfigError, match="int8"):
        fuse(RecycleGPT(ModelConfig(16, 96, 1, 64, 2), None), torch.int8)
