"""Products of a few rows with a weight: each program streams its share of the weight once, through a deep pipeline.

n rows, 16 at most, of I inputs; O outputs of a weight `(O, I)` as it lies. F SwiGLU width; T positions, H query and
G key/value heads of width D, S slots.
"""

from __future__ import annotations

import triton
import triton.language as tl

from recyclegpt.decoding.cuda_kernels.waiting import fetch_next, wait_for_earlier

# `do_not_specialize`: a kernel compiled for one row alone, or for sixteen, might sum in another order.


@triton.jit
def stream(
    x,
    weight,
    out_O,
    n,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
):
    """Sums `(16, O)` of rows x with the weight's rows `out_O`, in fp32, and the rows' mean squares where `NORM` asks.

    Part p of a block is summed by warp p. The squares are the diagonal of x times itself, and x is read for them once
    more, as if it were a weight: so every read is an asynchronous copy that the tensor cores can use as it arrives.
    """
    BLOCK: tl.constexpr = PARTS * DEPTH
    row_16 = tl.arange(0, 16)
    part_P = tl.arange(0, PARTS) * DEPTH
    depth_K = tl.arange(0, DEPTH)
    x_P16K = x + row_16[None, :, None] * INPUTS + part_P[:, None, None] + depth_K[None, None, :]
    weight_PKO = weight + out_O[None, None, :].to(tl.int64) * INPUTS + part_P[:, None, None] + depth_K[None, :, None]
    x_PK16 = x + row_16[None, None, :] * INPUTS + part_P[:, None, None] + depth_K[None, :, None]
    alive, alive_too = row_16[None, :, None] < n, row_16[None, None, :] < n
    sum_P16O = tl.zeros([PARTS, 16, out_O.shape[0]], tl.float32)
    square_P16 = tl.zeros([PARTS, 16, 16], tl.float32)
    for start in tl.range(0, INPUTS, BLOCK, num_stages=STAGES):
        if INPUTS % BLOCK == 0:
            w = tl.load(weight_PKO + start)
            rows = tl.load(x_P16K + start, mask=alive, other=0.0)
        else:
            w = tl.load(
                weight_PKO + start, mask=start + part_P[:, None, None] + depth_K[None, :, None] < INPUTS, other=0.0
            )
            inside = start + part_P[:, None, None] + depth_K[None, None, :] < INPUTS
            rows = tl.load(x_P16K + start, mask=alive & inside, other=0.0)
        sum_P16O = tl.dot(rows, w, sum_P16O, input_precision="ieee")
        if NORM:
            inside = alive_too & (start + part_P[:, None, None] + depth_K[None, :, None] < INPUTS)
            square_P16 = tl.dot(
                rows, tl.load(x_PK16 + start, mask=inside, other=0.0), square_P16, input_precision="ieee"
            )
    diagonal = row_16[:, None] == row_16[None, :]
    mean_16 = tl.sum(tl.where(diagonal, tl.sum(square_P16, 0), 0.0), 1) / INPUTS
    return tl.sum(sum_P16O, 0), mean_16


@triton.jit(do_not_specialize=["stride", "size", "n"])
def linear_kernel(
    x,
    weight,
    bias,
    plus,
    then,
    stride,
    size,
    y,
    n,
    eps,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    PLUS: tl.constexpr,
    OVERLAP: tl.constexpr,
    FETCH: tl.constexpr,
):
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = out < OUTPUTS
    # Beyond the last row the last is read again: a mask on every load would cost more.
    read = tl.minimum(out, OUTPUTS - 1)
    wait_for_earlier(OVERLAP)
    y_16O, mean_16 = stream(x, weight, read, n, INPUTS, PARTS, DEPTH, STAGES, NORM)
    fetch_next(then, tl.program_id(0), stride, size, PARTS, FETCH)
    if NORM:
        y_16O *= tl.rsqrt(mean_16 + eps)[:, None]
    if BIAS:
        y_16O += tl.load(bias + read).to(tl.float32)[None, :]
    row_16 = tl.arange(0, 16)
    at = row_16[:, None] * OUTPUTS + out[None, :]
    mask = (row_16 < n)[:, None] & inside[None, :]
    if PLUS:
        y_16O += tl.load(plus + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + at, y_16O.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["stride", "size", "n"])
def gated_kernel(
    x,
    weight,
    bias,
    then,
    stride,
    size,
    y,
    n,
    eps,
    INPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
    FETCH: tl.constexpr,
):
    pid = tl.program_id(0)
    # Gate and up of the same places side by side; the width is a multiple of 16, so that no program reaches beyond it.
    both = tl.arange(0, 2 * PAIRS)
    read = pid * PAIRS + both % PAIRS + (both // PAIRS) * WIDTH
    wait_for_earlier(OVERLAP)
    both_16, mean_16 = stream(x, weight, read, n, INPUTS, PARTS, DEPTH, STAGES, NORM)
    fetch_next(then, tl.program_id(0), stride, size, PARTS, FETCH)
    if NORM:
        both_16 *= tl.rsqrt(mean_16 + eps)[:, None]
    if BIAS:
        both_16 += tl.load(bias + read).to(tl.float32)[None, :]
    gate, up = halves(both_16.to(y.dtype.element_ty).to(tl.float32), PAIRS)
    row_16 = tl.arange(0, 16)
    at = row_16[:, None] * WIDTH + pid * PAIRS + tl.arange(0, PAIRS)[None, :]
    tl.store(y + at, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=(row_16 < n)[:, None])


@triton.jit
def halves(both_16, PAIRS: tl.constexpr):
    """The first and the second `PAIRS` columns."""
    return tl.split(tl.permute(tl.reshape(both_16, (16, 2, PAIRS)), (0, 2, 1)))


@triton.jit(do_not_specialize=["stride", "size", "n", "T", "S"])
def rotated_kernel(
    x,
    weight,
    bias,
    then,
    stride,
    size,
    cos,
    sin,
    positions,
    q,
    key,
    value,
    n,
    eps,
    T,
    S,
    INPUTS: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
    FETCH: tl.constexpr,
):
    # A program has so many pairs (i, i + D/2) of one head.
    HALF: tl.constexpr = D // 2
    head = tl.program_id(0) // (HALF // PAIRS)
    first = tl.program_id(0) % (HALF // PAIRS) * PAIRS
    both = tl.arange(0, 2 * PAIRS)
    read = head * D + first + both % PAIRS + (both // PAIRS) * HALF
    wait_for_earlier(OVERLAP)
    both_16, mean_16 = stream(x, weight, read, n, INPUTS, PARTS, DEPTH, STAGES, NORM)
    fetch_next(then, tl.program_id(0), stride, size, PARTS, FETCH)
    if NORM:
        both_16 *= tl.rsqrt(mean_16 + eps)[:, None]
    if BIAS:
        both_16 += tl.load(bias + read).to(tl.float32)[None, :]
    low, high = halves(both_16.to(q.dtype.element_ty).to(tl.float32), PAIRS)

    row_16 = tl.arange(0, 16)
    alive = (row_16 < n)[:, None]
    position_16 = tl.load(positions + row_16, mask=row_16 < n, other=0)
    pair = first + tl.arange(0, PAIRS)
    if head < H + G:
        turn = position_16[:, None] * D + pair[None, :]
        c, s = tl.load(cos + turn, mask=alive, other=0.0), tl.load(sin + turn, mask=alive, other=0.0)
        low, high = low * c - high * s, high * c + low * s
    low, high = low.to(q.dtype.element_ty), high.to(q.dtype.element_ty)
    slot_16 = ((row_16 // T) * G * S + position_16) * D
    if head < H:
        at = q + (row_16 * H + head)[:, None] * D + pair[None, :]
        tl.store(at, low, mask=alive)
        tl.store(at + HALF, high, mask=alive)
    elif head < H + G:
        at = key + (slot_16 + (head - H) * S * D)[:, None] + pair[None, :]
        tl.store(at, low, mask=alive)
        tl.store(at + HALF, high, mask=alive)
    else:
        at = value + (slot_16 + (head - H - G) * S * D)[:, None] + pair[None, :]
        tl.store(at, low, mask=alive)
        tl.store(at + HALF, high, mask=alive)
