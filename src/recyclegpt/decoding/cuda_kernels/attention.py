"""Attention over the cache, split over its slots: one sequence alone would keep a handful of multiprocessors busy.

Pieces are counted from slot 0, so that what a query computes depends on its position alone. N query rows, T of each
batch entry; H query and G key/value heads of width D, S slots, P pieces of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from recyclegpt.decoding.cuda_kernels.waiting import fetch_next, wait_for_earlier

AT_ONCE = 16
"""Pieces that the combination reads at once."""
WARPS = tl.constexpr(4)


@triton.jit(do_not_specialize=["stride", "size", "T", "S", "P", "scale"])
def piece_kernel(
    q,
    key,
    value,
    positions,
    then,
    stride,
    size,
    partial,
    largest,
    total,
    T,
    S,
    P,
    scale,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PIECE: tl.constexpr,
    OVERLAP: tl.constexpr,
    FETCH: tl.constexpr,
):
    """Of each query and piece: the largest score in powers of two, the sum of weights, the weighted sum of values."""
    GROUP: tl.constexpr = H // G
    piece, entry, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # Rows of a program: the query heads that share this key/value head, of all T positions, sixteen at a time.
    row_16 = block * 16 + tl.arange(0, 16)
    query_16 = entry // G * T + row_16 // GROUP
    head_16 = entry % G * GROUP + row_16 % GROUP
    alive = row_16 < T * GROUP
    wait_for_earlier(OVERLAP)
    fetch_next(then, (block * tl.num_programs(1) + entry) * tl.num_programs(0) + piece, stride, size, WARPS, FETCH)
    position_16 = tl.load(positions + query_16, mask=alive, other=-1)
    furthest = tl.max(position_16)
    if piece * PIECE <= furthest:
        d = tl.arange(0, D)
        slot = piece * PIECE + tl.arange(0, PIECE)
        # What lies beyond the last query is not even read: it may be anything, left over from another text.
        seen = (slot <= furthest)[:, None]
        at = (entry.to(tl.int64) * S + slot)[:, None] * D + d[None, :]
        out_16 = query_16 * H + head_16
        query = tl.load(q + out_16[:, None] * D + d[None, :], mask=alive[:, None], other=0.0)
        keys = tl.load(key + at, mask=seen, other=0.0)
        values = tl.load(value + at, mask=seen, other=0.0)
        score = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        score = tl.where(slot[None, :] <= position_16[:, None], score, float("-inf"))
        peak_16 = tl.max(score, 1)
        weight = tl.exp2(score - tl.where(peak_16 == float("-inf"), 0.0, peak_16)[:, None])
        sum_16D = tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        at_16 = out_16 * P + piece
        tl.store(partial + at_16[:, None] * D + d[None, :], sum_16D, mask=alive[:, None])
        tl.store(largest + at_16, peak_16, mask=alive)
        tl.store(total + at_16, tl.sum(weight, 1), mask=alive)


@triton.jit(do_not_specialize=["stride", "size", "P"])
def combine_kernel(
    partial,
    largest,
    total,
    positions,
    then,
    stride,
    size,
    y,
    P,
    H: tl.constexpr,
    D: tl.constexpr,
    PIECE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    OVERLAP: tl.constexpr,
    FETCH: tl.constexpr,
):
    """Attention of one query and head, from its pieces up to its position, in their order."""
    at = tl.program_id(0)
    d = tl.arange(0, D)
    wait_for_earlier(OVERLAP)
    fetch_next(then, at, stride, size, WARPS, FETCH)
    last = tl.load(positions + at // H) // PIECE
    peak = tl.full([], float("-inf"), tl.float32)
    weight_sum = tl.full([], 0.0, tl.float32)
    sum_D = tl.zeros([D], tl.float32)
    for first in range(0, last + 1, AT_ONCE):
        piece = first + tl.arange(0, AT_ONCE)
        there = piece <= last
        peak_p = tl.load(largest + at * P + piece, mask=there, other=float("-inf"))
        weight_p = tl.load(total + at * P + piece, mask=there, other=0.0)
        part_pD = tl.load(partial + (at * P + piece)[:, None] * D + d[None, :], mask=there[:, None], other=0.0)
        higher = tl.maximum(peak, tl.max(peak_p))
        scale_p = tl.exp2(peak_p - higher)
        kept = tl.exp2(peak - higher)
        sum_D = sum_D * kept + tl.sum(part_pD * scale_p[:, None], 0)
        weight_sum = weight_sum * kept + tl.sum(weight_p * scale_p)
        peak = higher
    tl.store(y + at * D + d, (sum_D / weight_sum).to(y.dtype.element_ty))
