"""What computes here, and the number formats that training and decoding choose by themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator

from recyclegpt.doctor.finding import INSTALL, Check, Finding, Verdict, describe
from recyclegpt.hardware import cpu as processor

GROUP = "device"
TELLING = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "asimdhp", "bf16", "sve")
"""Instruction sets that decide about speed; `asimd` is what ARM's NEON is called there."""
GET_TORCH = "see https://pytorch.org/get-started/locally for the wheel that fits the driver"
TIMEOUT_S = 10


def torch_imports() -> Finding:
    """Nothing works without it."""
    try:
        import torch
    except Exception as error:
        return Finding(
            GROUP,
            "torch",
            f"cannot be imported: {describe(error)}",
            Verdict.PROBLEM,
            INSTALL,
        )
    if torch.version.cuda:
        built = f"built for CUDA {torch.version.cuda}"
    else:
        built = f"built for ROCm {torch.version.hip}" if torch.version.hip else "built without CUDA"
    return Finding(GROUP, "torch", f"{torch.__version__}, {built}")


def cpu() -> Finding:
    """Name and the instruction sets that matter."""
    has = processor.flags()
    found = [flag for flag in TELLING if flag in has]
    return Finding(GROUP, "processor", f"{processor.name()}: {', '.join(found) or 'instruction sets not known'}")


def formats() -> Finding:
    """What `trainer.precision=auto` and `decoding.dtype=auto` become on the processor."""
    import torch

    from recyclegpt.hardware.dtypes import fastest_dtype, has_native_bf16

    device = torch.device("cpu")
    native = has_native_bf16(device)
    decoding = str(fastest_dtype(device)).removeprefix("torch.")
    return Finding(
        GROUP,
        "number formats",
        f"bf16 is {'native' if native else 'emulated, and slower than fp32'} on this processor: training chooses "
        f"{'bf16-mixed' if native else '32-true'}, decoding {decoding}",
    )


def cuda() -> Iterator[Finding]:
    """Every CUDA device that torch sees; where it sees none, whether there is one all the same."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        yield _no_cuda("; ".join(str(warning.message).splitlines()[0] for warning in told))
        return
    driver = nvidia_smi("driver_version")
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Finding(
            GROUP,
            f"cuda:{index}",
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}, "
            f"driver {driver[0] if driver else 'unknown'}, bf16 {'native' if native else 'emulated: fp32 is chosen'}",
        )


def mps() -> Iterator[Finding]:
    """Apple's GPU, where there is one."""
    import torch

    if torch.backends.mps.is_available():
        yield Finding(GROUP, "mps", "present; fp32 is chosen there")
    elif sys.platform == "darwin":
        yield Finding(GROUP, "mps", "none")


def _no_cuda(told: str) -> Finding:
    import torch

    cards = nvidia_smi("name")
    if not cards:
        return Finding(GROUP, "cuda", "no device" + (f" ({told})" if told else ""))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = f"nvidia-smi lists {', '.join(cards)}, and torch sees none"
    if not torch.version.cuda:
        return Finding(
            GROUP,
            "cuda",
            f"{found}: it is built without CUDA",
            Verdict.WARNING,
            f"install torch with CUDA; {GET_TORCH}",
        )
    if visible is not None and visible.strip() in ("", "-1"):
        return Finding(GROUP, "cuda", f"{found}: CUDA_VISIBLE_DEVICES={visible!r} hides them")
    return Finding(
        GROUP,
        "cuda",
        f"{found} (built for CUDA {torch.version.cuda}{'; ' + told if told else ''})",
        Verdict.WARNING,
        f"update the driver, or install a torch for an older CUDA; {GET_TORCH}",
    )


def nvidia_smi(field: str) -> list[str]:
    """What the driver's own tool says of each card; nothing where there is no such tool or no card."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, f"--query-gpu={field}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


CHECKS: dict[str, Check] = {
    "torch": torch_imports,
    "processor": cpu,
    "number formats": formats,
    "cuda": cuda,
    "mps": mps,
}
