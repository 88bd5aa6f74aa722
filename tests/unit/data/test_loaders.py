from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
from torch.utils.data._utils import signal_handling

from recyclegpt.data.loaders import TrainLoader
from recyclegpt.data.packed_rows import PackedRows, Packing, TokenArray

STREAM = PackedRows(TokenArray(np.arange(200)), Packing(row_length=4, num_views=3), 3, 0, 0, 1)


def test_a_worker_that_is_just_starting_outlives_a_signal_to_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between torch's own handlers, which die of SIGTERM, and ours there are some milliseconds."""
    torchs_own = signal_handling._set_worker_signal_handlers

    def and_then_told_to_stop(*args: Any) -> None:
        torchs_own(*args)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", and_then_told_to_stop)
    loader = TrainLoader(STREAM, num_workers=2, seed=0, state=None)
    batches = iter(loader)
    assert [next(batches).state["batch"] for _ in range(4)] == [1, 2, 3, 4]
    loader.close()


def test_a_signal_that_comes_while_workers_start_is_answered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    start = TrainLoader._start

    def told_to_stop(loader: TrainLoader) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(loader)

    monkeypatch.setattr(TrainLoader, "_start", told_to_stop)
    try:
        next(iter(TrainLoader(STREAM, num_workers=0, seed=0, state=None)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
