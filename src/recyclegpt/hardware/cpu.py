"""What the system says of the processor: name, instruction sets, and how many cores this process may use."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def read_cpuinfo() -> list[dict[str, str]]:
    """The fields of each logical processor; nothing where the system has no such file."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    blocks = [[line.partition(":") for line in block.splitlines()] for block in text.split("\n\n") if block.strip()]
    return [{key.strip(): value.strip() for key, _, value in block} for block in blocks]


def name() -> str:
    """Name of the processor as the system gives it."""
    names = [block["model name"] for block in read_cpuinfo() if "model name" in block]
    return names[0] if names else platform.processor() or platform.machine() or "unknown"


def flags() -> set[str]:
    """Instruction sets of the processor: `flags` on x86, `Features` on ARM."""
    blocks = read_cpuinfo()
    first = blocks[0] if blocks else {}
    return set((first.get("flags") or first.get("Features") or "").split())


def num_logical() -> int:
    """Logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_physical() -> int:
    """Physical cores that this process may run on. Two threads of one core share its arithmetic units."""
    if not hasattr(os, "sched_getaffinity"):
        return num_logical()
    allowed = os.sched_getaffinity(0)
    blocks = [block for block in read_cpuinfo() if block.get("processor", "").isdigit()]
    cores = {
        (block.get("physical id"), block.get("core id", block["processor"]))
        for block in blocks
        if int(block["processor"]) in allowed
    }
    return len(cores) or num_logical()


def quota() -> float | None:
    """Processors' worth of time that the control group (a container's, say) allows; None where nothing limits it."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits: list[float] = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = CGROUPS / controllers
        folder = base / place.strip("/")
        # A limit of a group above holds too. A container may not see its own place, only what it takes for the top.
        for group in {base, folder, *(above for above in folder.parents if above.is_relative_to(base))}:
            limits += _limits(group)
    return min(limits, default=None)


def num_usable() -> int:
    """Cores that threads of this process can really keep busy."""
    limit = quota()
    return num_physical() if limit is None else max(1, min(num_physical(), math.ceil(limit)))


def _limits(group: Path) -> list[float]:
    try:
        allowed, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return [] if allowed == "max" else [int(allowed) / int(period)]
    except (OSError, ValueError):
        pass
    try:  # control groups of the first version
        allowed, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        return [int(allowed) / int(period)] if int(allowed) > 0 else []
    except (OSError, ValueError):
        return []
