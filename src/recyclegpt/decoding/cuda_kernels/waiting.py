"""What a program does before it reads anything that another kernel writes (`sizes.overlapping`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait_for_earlier(OVERLAP: tl.constexpr):
    """Wait until the kernel before has ended, then let the one after start and wait in its turn.

    In this order: whoever starts early finds all but its direct predecessor ended.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def fetch_weights(
    weight,
    out_O,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Ask for the first `AHEAD` inputs of these rows of the weight, to lie in the L2 cache when the wait is over."""
    if OVERLAP and AHEAD > 0:
        # One request a thread: a tensor of fewer elements would be asked for several times.
        CHUNKS: tl.constexpr = 32 * PARTS // out_O.shape[0]
        SIZE: tl.constexpr = AHEAD // CHUNKS
        chunk = tl.arange(0, CHUNKS)[None, :] * SIZE
        at = weight + out_O[:, None].to(tl.int64) * INPUTS + chunk
        size = tl.full([out_O.shape[0], CHUNKS], SIZE * weight.dtype.element_ty.primitive_bitwidth // 8, tl.int32)
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
            "=r,l,r",
            [at, size],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
