"""How the kernels cut their work: the one place to tune, on hardware, with `evaluation/kernel_bandwidth.py`.

The sizes decide in which order a sum runs. So they follow from the shape of the weight alone, never from the number of
rows: a row is to have the same result among two as among nine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

PIECE = 128
"""Slots of the cache that one program of attention reads, counted from slot 0."""


MULTIPROCESSORS = 132
"""Of an H100 or H200."""


@dataclass(frozen=True)
class Sizes:
    """A program of a product holds `outputs` of the weight's rows, `parts * depth` inputs at a time.

    Each of `parts` warps sums its own `depth` of them: one warp alone would wait for its tensor core, whose sums are a
    chain (about 33 cycles a link on Hopper), longer than for the memory. `stages - 1` blocks are under way at once.
    """

    outputs: int
    parts: int = 4
    depth: int = 64
    stages: int = 4

    def shared_bytes(self, rows: int = 16, itemsize: int = 2) -> int:
        """Shared memory of a program, with `rows` beside the weight: 32 where they are normed, since they come twice.

        Hopper has 227 KB for the programs of a multiprocessor, Ampere 163.
        """
        return (self.stages - 1) * self.parts * self.depth * (self.outputs + rows) * itemsize


TUNED: dict[tuple[int, int, int], Sizes] = {}
"""Measured sizes of a weight `(outputs, inputs, halves)`, before the rule below."""


def sizes_of(outputs: int, inputs: int, halves: int = 1) -> Sizes:
    """Sizes for a weight of `outputs` rows, in two `halves` where rows are combined in pairs.

    To reach 4 TB/s on 132 multiprocessors some 30 KB have to be under way on each, and a program can keep up only if a
    block holds much more than it takes to wait for one: narrow weights, which give few programs, get larger blocks.
    """
    if (outputs, inputs, halves) in TUNED:
        return TUNED[outputs, inputs, halves]
    if halves == 2:
        # All programs at once: three of 64 KB fit on one multiprocessor, two of 96 KB.
        if outputs < 4096:
            return Sizes(16, stages=4)
        return Sizes(32, stages=4 if outputs // 32 <= 2 * MULTIPROCESSORS else 3)
    if outputs >= 8192:
        return Sizes(32, stages=4)
    # 64 to 96 KB, so that the next kernel's programs find room beside them (`Launch`).
    return Sizes(16 if outputs >= 1536 else 8, parts=8, stages=4)


AHEAD_BYTES = 8 * 2**20
"""What the memory delivers in about two microseconds: the time from one kernel's last byte to the next one's first."""


def ahead(weight_bytes: int, threads: int) -> tuple[int, int]:
    """Bytes `(stride, size)`: each of so many threads of a kernel fetches `size` of its `stride` of the next weight.

    Whole cache lines, spread evenly, so that each program of the next kernel finds the same share of its own.
    """
    stride = weight_bytes // threads // 128 * 128
    return stride, min(stride, -(-AHEAD_BYTES // threads // 128) * 128)


@dataclass(frozen=True)
class Launch:
    """What a kernel and the one after it do at the same time, from Hopper on. No result depends on it."""

    fetch: bool = False
    """A kernel asks for some of the next one's weights while it ends, so that the memory is not idle between them."""
    overlap: bool = False
    """A kernel may start while the one before it still runs (programmatic dependent launch).

    Free of races because every program waits, before it reads or writes anything, until all of the kernel before has
    ended and its results are visible; as that one waited for its own predecessor in the same way, all earlier ones have
    ended too.
    """


launch = Launch()
"""In force; what a CUDA graph has captured stays as it was then."""


@contextmanager
def launching(**changed: bool) -> Iterator[None]:
    """Launch kernels in another way within the block: `launching(overlap=True)`."""
    global launch  # noqa: PLW0603 - one switch for all launches
    before, launch = launch, replace(launch, **changed)
    try:
        yield
    finally:
        launch = before
