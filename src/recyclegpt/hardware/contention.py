"""How busy others keep the processors that we measure on. A speed taken meanwhile is not to be trusted."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

CONTENDED = 0.1
"""Share of the processors in others' use from which a CPU's speeds are called contended."""
STAT = Path("/proc/stat")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal (proc_stat(5)); idle and iowait are not busy, guest is part of user."""


class ExternalCpuLoad:
    """Measures, from `with` to its end, what other processes took of the processors this one may run on.

    Attributes:
        share: their processor seconds over the seconds there were, 0 to 1; None before the end, where the system does
            not say (no `/proc/stat`), and of an instant too short to be counted.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self.stat = stat
        self.share: float | None = None

    def __enter__(self) -> ExternalCpuLoad:
        self._start = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    """Whether others took enough to falsify a speed; None where that is not known."""
    return None if share is None else share > CONTENDED
