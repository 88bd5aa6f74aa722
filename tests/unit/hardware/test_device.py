"""What others took of our processors: their busy time less our own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recyclegpt.hardware.device import STAT, ExternalCpuLoad, is_contended

LINUX = pytest.mark.skipif(not STAT.exists(), reason="no /proc/stat here")


def stat(path: Path, busy_ticks: int) -> Path:
    """Two processors of ours; the first has been busy, idle and waiting, the third is not ours."""
    third = f"cpu2 {busy_ticks * 9} 0 0 0 0 0 0 0 0 0"
    path.write_text(
        f"cpu 9 9 9 9\ncpu0 {busy_ticks} 1 2 777 888 0 3 4 0 0\ncpu1 5 0 0 9 0 0 0 0 0 0\n{third}\nctxt 1\n"
    )
    return path


class Clock:
    """Stands for time.perf_counter and os.times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.own = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(os, "times", lambda: os.times_result((self.own / 2, self.own / 2, 0.0, 0.0, self.wall)))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(os, "sysconf", lambda _: 100)


def test_others_share_is_busy_time_less_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with ExternalCpuLoad(stat(tmp_path / "stat", 0)) as load:
        clock.wall, clock.own = 10.0, 4.0
        stat(tmp_path / "stat", 700)
    assert load.share == pytest.approx((7.0 - 4.0) / (2 * 10.0))


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, None), (0.3, 0.0)])
def test_an_instant_is_too_short_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: float | None
) -> None:
    clock = Clock(monkeypatch)
    with ExternalCpuLoad(stat(tmp_path / "stat", 5)) as load:
        clock.wall += seconds
    assert load.share == expected


def test_where_the_system_does_not_say_nothing_is_known(tmp_path: Path) -> None:
    with ExternalCpuLoad(tmp_path / "none") as load:
        pass
    assert load.share is None
    assert is_contended(load.share) is None
    assert is_contended(0.05) is False
    assert is_contended(0.2) is True


@LINUX
def test_a_busy_neighbour_is_seen() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        with ExternalCpuLoad() as load:
            time.sleep(1.0)
    finally:
        process.kill()
        process.wait()
    assert load.share is not None
    # It has one processor to itself, or shares all with other work, which counts as well.
    assert load.share > 0.6 / len(os.sched_getaffinity(0))
