"""A cycle captured once as a CUDA graph and replayed: no launch overhead, no synchronisation inside."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class GraphedStep:
    """Replays `cycle(num_read)`. For each new `num_slots_read` the first call runs it as it is, the second captures it.

    Every tensor that a cycle reads or writes must stay in place between calls, as a session's do.
    """

    def __init__(self, cycle: Callable[[int], object]) -> None:
        self.cycle = cycle
        self.stream = torch.cuda.Stream()
        self.warm: set[int] = set()
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, num_slots_read: int) -> None:
        if num_slots_read in self.graphs:
            self.graphs[num_slots_read].replay()
            return
        if num_slots_read not in self.warm:
            # Libraries allocate their workspaces in a first run, which has to be on a side stream before a capture.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.cycle(num_slots_read)
            torch.cuda.current_stream().wait_stream(self.stream)
            self.warm.add(num_slots_read)
            return
        graph = torch.cuda.CUDAGraph()
        # Only this thread is held to what a capture allows: the one that pins a loader's batches goes on meanwhile.
        with without_gc(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.cycle(num_slots_read)
        self.graphs[num_slots_read] = graph
        graph.replay()


@contextmanager
def without_gc() -> Iterator[None]:
    """Collect no garbage in the block: an old graph or kernel that is freed during a capture makes it fail."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
