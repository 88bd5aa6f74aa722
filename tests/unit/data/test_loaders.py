from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from recyclegpt.data.batch import Batch
from recyclegpt.data.loaders import TrainLoader, default_num_workers
from recyclegpt.data.packed_rows import PackedRows, TokenArray
from recyclegpt.data.packing import Packing

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


class Untouched(dict[str, Any]):
    """A position that nobody may walk through."""

    def items(self) -> Any:
        raise AssertionError("looked into")


def make_batch(masked: bool) -> Batch:
    documents_NBT = torch.zeros(3, 2, 4, dtype=torch.int32) if masked else None
    return Batch(torch.zeros(3, 2, 4, dtype=torch.long), documents_NBT, Untouched(batch=1), np.arange(2))


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_are_pinned_and_copied_without_waiting(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's and Lightning's own ways, with a GPU that is only claimed to be there."""
    pinned: list[torch.dtype] = []
    moved: list[tuple[torch.dtype, Any, Any]] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.dtype)
        return tensor

    def to(tensor: torch.Tensor, device: Any, **settings: Any) -> torch.Tensor:
        moved.append((tensor.dtype, device, settings))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch = make_batch(masked)
    dtypes = [torch.long, torch.int32] if masked else [torch.long]
    found = torch.utils.data._utils.pin_memory.pin_memory(batch)
    assert pinned == dtypes
    for name, waits in (("cuda", False), ("cpu", True)):
        device = torch.device(name)
        found = LightningModule().transfer_batch_to_device(found, device, 0)
        assert moved == [(dtype, device, {"non_blocking": not waits}) for dtype in dtypes]
        moved.clear()
    assert isinstance(found, Batch)
    assert found.state is batch.state
    assert found.rows_B is batch.rows_B


def test_memory_is_pinned_and_read_ahead_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[dict[str, Any]] = []

    class Loader(DataLoader[Any]):
        def __init__(self, *args: Any, **given: Any) -> None:
            settings.append(given)
            super().__init__(*args, **{**given, "pin_memory": False})

    monkeypatch.setattr("recyclegpt.data.loaders.DataLoader", Loader)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        next(iter(TrainLoader(STREAM, num_workers=0, seed=0, state=None)))
        assert settings.pop()["pin_memory"] == there
        assert default_num_workers(order_depends=False) == (2 if there else 0)
        assert default_num_workers(order_depends=True) == 0
