"""What a device is called and computes in, the peak speed its maker states, and how busy others keep the CPUs."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recyclegpt.errors import ConfigError

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""Number formats of weights and states by the names that settings use."""
DECODING_DTYPES = DTYPES | {"int8": torch.int8}
"""Those that decoding has: int8 stands for int8 weights with states in the device's fastest format."""


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic runs in hardware there: AVX512-BF16 or AMX on a CPU, Ampere or later on CUDA.

    Everywhere else bf16 is emulated, and slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Private in torch 2.11 to 2.15, but the only question to the processor that torch asks for us.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device has it natively, else fp32."""
    return torch.bfloat16 if has_native_bf16(device) else torch.float32


def named_dtype(name: str, device: torch.device, decoding: bool = False) -> torch.dtype:
    """The number format a setting names; `auto` is the fastest of the device.

    Raises:
        ConfigError: the name is unknown, or is one of `DECODING_DTYPES` alone and this is not about `decoding`.
    """
    names = DECODING_DTYPES if decoding else DTYPES
    if name == "auto":
        return fastest_dtype(device)
    if name not in names:
        raise ConfigError(f"dtype: {name!r} is unknown; choose from auto, {', '.join(names)}")
    return names[name]


CONTENDED = 0.1
"""Share of the CPUs used by other processes above which speeds are called contended."""
STAT = Path("/proc/stat")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal (proc_stat(5)); idle and iowait are not busy, guest is part of user."""


class ExternalCpuLoad:
    """Measures, inside a `with` block, what other processes used of the CPUs this one may run on.

    Attributes:
        share: their CPU seconds over the available ones, 0 to 1; None before the end, without `/proc/stat`, and for
            blocks too short to be counted.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self.stat = stat
        self.share: float | None = None

    def __enter__(self) -> ExternalCpuLoad:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        end = self._now()
        if self._start is None or end is None:
            return
        busy, own, wall = (now - then for now, then in zip(end, self._start, strict=True))
        if wall >= 0.2:  # processor time is counted in hundredths of a second
            self.share = min(1.0, max(0.0, (busy - own) / (wall * len(os.sched_getaffinity(0)))))

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds that our processors were busy, that this process was, and that have passed."""
        try:
            lines = self.stat.read_text(encoding="ascii").splitlines()
            names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        except (OSError, AttributeError):  # not Linux
            return None
        rows = [fields[1:] for fields in map(str.split, lines) if fields and fields[0] in names]
        ticks = sum(int(row[i]) for row in rows for i in BUSY_FIELDS)
        spent = os.times()
        own = spent.user + spent.system + spent.children_user + spent.children_system
        return ticks / os.sysconf("SC_CLK_TCK"), own, time.perf_counter()


def is_contended(share: float | None) -> bool | None:
    """Whether others used enough to distort a speed; None where that is unknown."""
    return None if share is None else share > CONTENDED


PEAK_FLOPS_BF16 = {
    r"B200": 2.25e15,
    r"GH200": 989.4e12,
    r"H200 NVL": 835.5e12,
    r"H200": 989.4e12,
    r"H100 NVL": 835.5e12,
    r"H100 PCIe": 756e12,
    r"H100": 989.4e12,
    r"A100": 312e12,
    r"A40": 149.7e12,
    r"A30": 165e12,
    r"A10": 125e12,
    r"A6000": 154.8e12,
    r"L40S": 362.05e12,
    r"L40": 181.05e12,
    r"L4": 121e12,
    r"RTX 4090": 165.2e12,
    r"RTX 3090": 71e12,
}
"""Dense bf16 operations per second, fp32 accumulation, of the device whose name holds the key (makers' data sheets)."""

OTHER_DEVICES = r"\b(MIG|Laptop|Max-Q)\b"
"""Names that contain a key of the table but are another device."""


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found.group(1) if found else platform.processor() or platform.machine() or "unknown"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def peak_flops(name: str) -> float:
    """Dense bf16 peak of a device by name, operations per second; NaN for unknown devices."""
    if re.search(OTHER_DEVICES, name):
        return math.nan
    return next((peak for key, peak in PEAK_FLOPS_BF16.items() if re.search(rf"\b{key}\b", name)), math.nan)


def measured_on(device: torch.device, others_cpu: float | None) -> dict[str, Any]:
    """The `hardware` of a benchmark; `others_cpu` is the share of the CPUs that other processes used meanwhile."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "contended": is_contended(others_cpu) if device.type == "cpu" else None,
        "others_cpu": others_cpu,
    }


def warn_contended(hardware: Mapping[str, Any]) -> None:
    """Warn below a table whose speeds are unreliable."""
    if hardware["contended"]:
        print(f"contended: other processes were using {hardware['others_cpu']:.0%} of the CPUs; speeds are unreliable")
