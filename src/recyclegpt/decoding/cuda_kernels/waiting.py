"""What a program does for the kernels before and after its own (`sizes.Launch`)."""

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
def fetch_next(then, program, stride, size, WARPS: tl.constexpr, FETCH: tl.constexpr):
    """Ask for `size` of every `stride` bytes of the weight that is read next, to lie in the L2 cache by then.

    A hint alone, and one request a thread: `program` is this one's number among those that share the weight.
    """
    if FETCH:
        thread = program * (32 * WARPS) + tl.arange(0, 32 * WARPS)
        at = then.to(tl.pointer_type(tl.int8)) + thread.to(tl.int64) * stride
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
            "=r,l,r",
            [at, tl.zeros([32 * WARPS], tl.int32) + size],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
