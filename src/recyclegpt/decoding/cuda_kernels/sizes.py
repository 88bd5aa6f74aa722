"""How the kernels cut their work: the one place to tune, on hardware, with `evaluation/kernel_bandwidth.py`.

The sizes decide in which order a sum runs. So they follow from the shape of the weight alone, never from the number of
rows: a row is to have the same result among two as among nine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PIECE = 128
"""Slots of the cache that one program of attention reads, counted from slot 0."""


AHEAD_BYTES = 8 * 2**20
"""What the memory delivers in about two microseconds, the time from one kernel's last byte to the next one's first."""


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

    def ahead(self, outputs: int, inputs: int) -> int:
        """Inputs of each row to fetch before the kernel's turn has come (`overlapping`): `AHEAD_BYTES` in all.

        Whole 16-byte words for each of a program's threads; 0 where there would be none.
        """
        chunks = max(1, 32 * self.parts // self.outputs)
        wanted = min(inputs, AHEAD_BYTES // (2 * outputs))
        return wanted // (8 * chunks) * 8 * chunks


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
    # 64 to 96 KB, so that the next kernel's programs find room beside them (`overlapping`).
    return Sizes(16 if outputs >= 1536 else 8, parts=8, stages=4)


overlap = False
"""Programmatic dependent launch (Hopper and later): see `overlapping`."""


@contextmanager
def overlapping(on: bool = True) -> Iterator[None]:
    """Let a kernel start while the one before it still runs, and fetch its first weights into the L2 cache meanwhile.

    Free of races because every program waits, before it reads or writes anything an earlier kernel may touch, until all
    of the kernel before has ended and its results are visible; as that one waited for its own predecessor in the same
    way, all earlier ones have ended too. Before the wait only weights are fetched, which no kernel writes.
    """
    global overlap  # noqa: PLW0603 - one switch for all launches
    before, overlap = overlap, on
    try:
        yield
    finally:
        overlap = before
