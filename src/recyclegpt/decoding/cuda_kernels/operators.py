"""The kernels as functions of tensors, on the current CUDA stream; none waits for the device or asks it for a value.

Weights and caches have to be contiguous; states are made so. n rows, at most `MAX_ROWS`, I and O widths of a product,
F SwiGLU width, B batch, T positions, S slots, H and G heads, D head width.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from recyclegpt.decoding.cuda_kernels import MAX_ROWS, sizes
from recyclegpt.decoding.cuda_kernels.attention import AT_ONCE, WARPS, combine_kernel, piece_kernel
from recyclegpt.decoding.cuda_kernels.products import gated_kernel, linear_kernel, rotated_kernel
from recyclegpt.decoding.cuda_kernels.sizes import PIECE, Sizes, sizes_of


def linear(
    x_nI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None = None,
    plus_nO: Tensor | None = None,
    eps: float | None = None,
    then: Tensor | None = None,
    how: Sizes | None = None,
) -> Tensor:
    """Return `(n, O)`: rows x, over their root mean square where `eps` is given, times the weight, plus what is given.

    `then`, here and below: the weight that is read next.

    Raises:
        ValueError: more than `MAX_ROWS` rows.
    """
    outputs, inputs = weight_OI.shape
    how = how or sizes_of(outputs, inputs)
    y_nO = x_nI.new_empty(_checked(x_nI), outputs)
    programs = -(-outputs // how.outputs)
    ahead = _ahead(then, programs * how.parts)
    linear_kernel[(programs,)](
        x_nI.contiguous(), weight_OI, bias_O, None if plus_nO is None else plus_nO.contiguous(), *ahead, y_nO,
        len(x_nI), eps or 0.0, inputs, outputs, how.outputs,
        PLUS=plus_nO is not None, FETCH=ahead[0] is not None, **_options(how, eps, bias_O),
    )  # fmt: skip
    return y_nO


def gated(
    x_nI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None = None,
    eps: float | None = None,
    then: Tensor | None = None,
    how: Sizes | None = None,
) -> Tensor:
    """Return silu(gate) * up `(n, F)` of products with a weight `(2 F, I)` that holds gate's rows, then up's.

    Raises:
        ValueError: more than `MAX_ROWS` rows, or an F that these sizes do not divide.
    """
    outputs, inputs = weight_OI.shape
    how = _dividing(how or sizes_of(outputs, inputs, halves=2), outputs // 2)
    y_nF = x_nI.new_empty(_checked(x_nI), outputs // 2)
    programs = outputs // how.outputs
    ahead = _ahead(then, programs * how.parts)
    gated_kernel[(programs,)](
        x_nI.contiguous(), weight_OI, bias_O, *ahead, y_nF, len(x_nI), eps or 0.0, inputs, outputs // 2,
        how.outputs // 2, FETCH=ahead[0] is not None, **_options(how, eps, bias_O),
    )  # fmt: skip
    return y_nF


def rotate_store(
    x_nI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    eps: float | None,
    cos_SD: Tensor,
    sin_SD: Tensor,
    positions_BT: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    how: Sizes | None = None,
) -> Tensor:
    """Rotated queries `(B, T, H, D)` of a weight of queries, keys and values; those go into the cache, keys rotated.

    Raises:
        ValueError: more than `MAX_ROWS` rows, or half a head that these sizes do not divide.
    """
    outputs, inputs = weight_OI.shape
    B, T = positions_BT.shape
    _, G, S, D = key_BGSD.shape
    how = _dividing(how or sizes_of(outputs, inputs, halves=2), D // 2)
    H = outputs // D - 2 * G
    q_BTHD = x_nI.new_empty(B, T, H, D)
    rotated_kernel[(outputs // how.outputs,)](
        x_nI.contiguous(), weight_OI, bias_O, None, 0, 0, cos_SD, sin_SD, positions_BT.contiguous(), q_BTHD, key_BGSD,
        value_BGSD, _checked(x_nI), eps or 0.0, T, S, inputs, H, G, D, how.outputs // 2,
        FETCH=False, **_options(how, eps, bias_O),
    )  # fmt: skip
    return q_BTHD


def attend(
    q_BTHD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    positions_BT: Tensor,
    num_read: int,
    then: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Attention `(B, T, H, D)` of each query to the slots up to its own position, which are below `num_read`.

    It leaves the memory idle for long enough to fetch of two weights `then`.
    """
    B, T, H, D = q_BTHD.shape
    _, G, S, _ = key_BGSD.shape
    P, blocks = -(-num_read // PIECE), -(-T * H // G // MAX_ROWS)
    partial = q_BTHD.new_empty(B * T * H, P, D, dtype=torch.float32)
    largest, total = q_BTHD.new_empty(2, B * T * H, P, dtype=torch.float32)
    positions_BT = positions_BT.contiguous()
    y_BTHD = torch.empty_like(q_BTHD)
    # Powers of two instead of e: one multiplication with the scale, none for each score.
    scale = math.log2(math.e) / math.sqrt(D)
    warps: int = WARPS.value
    first = _ahead(then[0], P * B * G * blocks * warps)
    second = _ahead(then[1], B * T * H * warps)
    piece_kernel[P, B * G, blocks](
        q_BTHD.contiguous(), key_BGSD, value_BGSD, positions_BT, *first, partial, largest, total, T, S, P, scale,
        H, G, D, PIECE=PIECE, FETCH=first[0] is not None, num_warps=warps, **_overlap(),
    )  # fmt: skip
    combine_kernel[(B * T * H,)](
        partial, largest, total, positions_BT, *second, y_BTHD, P, H, D, PIECE=PIECE, AT_ONCE=AT_ONCE,
        FETCH=second[0] is not None, num_warps=warps, **_overlap(),
    )  # fmt: skip
    return y_BTHD


def _checked(x_nI: Tensor) -> int:
    if len(x_nI) > MAX_ROWS:
        raise ValueError(f"{len(x_nI)} rows, {MAX_ROWS} at most")
    return len(x_nI)


def _dividing(how: Sizes, half: int) -> Sizes:
    if how.outputs % 2 or half % (how.outputs // 2):
        raise ValueError(f"{how.outputs // 2} pairs a program do not divide {half}")
    return how


def _options(how: Sizes, eps: float | None, bias_O: Tensor | None) -> dict[str, Any]:
    return {
        "PARTS": how.parts,
        "DEPTH": how.depth,
        "STAGES": how.stages,
        "NORM": eps is not None,
        "BIAS": bias_O is not None,
        "num_warps": how.parts,
    } | _overlap()


def _overlap() -> dict[str, Any]:
    # The option exists for Hopper and later alone.
    return {"OVERLAP": True, "launch_pdl": True} if sizes.launch.overlap else {"OVERLAP": False}


def _ahead(then: Tensor | None, warps: int) -> tuple[Tensor | None, int, int]:
    """What so many warps are to fetch of the next weight, if any: where, and stride and size of a thread's part."""
    if then is None or not sizes.launch.fetch or not _can_fetch(then.device):
        return None, 0, 0
    stride, size = sizes.ahead(then.nbytes, 32 * warps)
    return (then, stride, size) if size else (None, 0, 0)


@functools.cache
def _can_fetch(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
