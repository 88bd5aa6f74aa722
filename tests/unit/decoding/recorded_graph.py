"""CUDA graphs without a GPU: capture notes every operator with the tensors it worked on, replay runs them again.

As on CUDA, nothing that was captured has happened until it is replayed, Python is not run again, and what a graph reads
or writes are the tensors of its capture, wherever newer ones may be. Asking for a value while capturing is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
"""Operators whose result the host has to wait for."""


class HostWaitedError(RuntimeError):
    """The host asked for a value while a graph was captured; on CUDA a RuntimeError too."""


class RecordedGraph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    made = 0
    replays = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        type(self).replays += 1
        for function, args, kwargs, before in self.calls:
            after = function(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """Stands in for `torch.cuda.graph`."""

    def __init__(self, graph: RecordedGraph, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local", "a loader's pinning thread would break the capture"
        super().__init__()
        self.graph = graph
        self.overwritten: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in ASKING:
            raise HostWaitedError(func.name())
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._remember(kwargs[argument.name] if argument.name in kwargs else args[number])
        result = func(*args, **kwargs)
        self.graph.calls.append((func, args, kwargs, result))
        return result

    def _remember(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.overwritten:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.overwritten[storage.data_ptr()] = whole, whole.clone()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for whole, before in self.overwritten.values():
            whole.copy_(before)


class _Stream:
    def wait_stream(self, _other: object) -> None: ...


@contextlib.contextmanager
def recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[RecordedGraph]]:
    """Replace what `torch.cuda` offers for graphs; yields the class whose `made` and `replays` count."""
    RecordedGraph.made = RecordedGraph.replays = 0
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", _Stream)
        patch.setattr(torch.cuda, "current_stream", _Stream)
        patch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
        patch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
        patch.setattr(torch.cuda, "graph", Capture)
        yield RecordedGraph
