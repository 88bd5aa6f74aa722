"""A decoding step captured once as a CUDA graph and replayed: no launch overhead, no synchronisation inside."""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class GraphedStep:
    """Replays `step(num_slots_read)`. For each new number the first call runs it eagerly, the second captures it.

    Every tensor that a step reads or writes must stay in place between calls, as a session's do. The first graph is
    checked: from the same state its replay has to leave the same tokens and records as the eager step. Where it does
    not, or where capturing fails, all steps run eagerly from then on, and one warning says so.
    """

    def __init__(self, step: Callable[[int], object], state: Callable[[], Sequence[Tensor]] | None = None) -> None:
        """`state`: the tensors that the check restores and compares; without it nothing is checked."""
        self.step, self.state = step, state
        self.stream = torch.cuda.Stream()
        self.warm: set[int] = set()
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.eager = False
        """Whether graphs were given up."""

    def __call__(self, num_slots_read: int) -> None:
        if self.eager:
            self.step(num_slots_read)
        elif num_slots_read in self.graphs:
            self.graphs[num_slots_read].replay()
        elif num_slots_read in self.warm:
            self._capture(num_slots_read)
        else:
            # Libraries allocate their workspaces in a first run, which has to be on a side stream before a capture.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(num_slots_read)
            torch.cuda.current_stream().wait_stream(self.stream)
            self.warm.add(num_slots_read)

    def _capture(self, num_slots_read: int) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            gc.disable()  # an old graph or kernel that is freed during a capture makes it fail
            # Only this thread is held to what a capture allows: the one that pins a loader's batches keeps working.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.step(num_slots_read)
        except RuntimeError as error:
            self._give_up(f"capturing failed ({str(error).splitlines()[0]})")
            self.step(num_slots_read)
            return
        finally:
            gc.enable()
        if self.graphs or self.state is None:
            graph.replay()
        elif not self._equals_eager(graph, num_slots_read):
            self._give_up("the first replayed step differed from the eager one")
            return
        self.graphs[num_slots_read] = graph

    def _equals_eager(self, graph: torch.cuda.CUDAGraph, num_slots_read: int) -> bool:
        """Replay, then run the same step eagerly from the same state, which stays in place."""
        assert self.state is not None
        tensors = self.state()
        before = [tensor.clone() for tensor in tensors]
        graph.replay()
        replayed = [tensor.clone() for tensor in tensors]
        for tensor, earlier in zip(tensors, before, strict=True):
            tensor.copy_(earlier)
        self.step(num_slots_read)
        # Probabilities are restored, not compared: a library may round otherwise while it is captured.
        pairs = [pair for pair in zip(replayed, tensors, strict=True) if not pair[0].is_floating_point()]
        return all(torch.equal(one, other) for one, other in pairs)

    def _give_up(self, reason: str) -> None:
        self.eager = True
        self.graphs.clear()
        _warn(reason)


@functools.cache  # once per process and reason
def _warn(reason: str) -> None:
    warnings.warn(f"decoding without CUDA graphs, which is slower: {reason}", stacklevel=5)
