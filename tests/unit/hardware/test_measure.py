"""Times by the host's clock and, with stand-ins for CUDA's events, by the device's own."""

from __future__ import annotations

import itertools

import pytest
import torch

from recyclegpt.hardware.measure import Stopwatch


def test_the_hosts_clock_is_read_around_each_call() -> None:
    now = [0.0]

    def call(seconds: float) -> None:
        now[0] += seconds

    stopwatch = Stopwatch(torch.device("cpu"), lambda: now[0])
    assert stopwatch.seconds(lambda: call(1), lambda: call(5), lambda: call(0)) == [1, 5, 0]


def test_on_cuda_a_round_is_queued_whole_behind_a_busy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []
    device_ms = itertools.count(0, 250)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            did.append("mark")
            self.at = next(device_ms)

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: did.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _cycles: did.append("busy"), raising=False)
    stopwatch = Stopwatch(torch.device("cuda"))
    assert stopwatch.seconds(lambda: did.append("one"), lambda: did.append("two")) == [0.25, 0.25]
    assert did == ["wait", "busy", "mark", "one", "mark", "two", "mark", "wait"]
