"""Progress is drawn by time, not by the number of batches."""

from __future__ import annotations

import pytest

from recyclegpt.callbacks import ProgressBar


def test_slow_steps_are_drawn_from_the_first_on_and_fast_ones_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("recyclegpt.callbacks.throughput.time.monotonic", lambda: now)
    drawn = {}
    for seconds in (20.0, 0.01):
        bar, drawn[seconds] = ProgressBar(), []
        for batch in range(1, 51):
            now += seconds
            if bar._should_update(batch, 50):
                drawn[seconds].append(batch)
    assert drawn[20.0] == list(range(1, 51))
    assert drawn[0.01] == [1, 50]
