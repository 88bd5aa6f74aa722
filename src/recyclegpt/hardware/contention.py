"""How busy other processes keep the CPUs during a measurement: under load, speeds are unreliable."""

from __future__ import annotations

import os
import time
from pathlib import Path

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
