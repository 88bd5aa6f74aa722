"""Operators of a decoding pass on a CPU, in C++. Slow twins of each stand in the tests.

Weights and caches have to be contiguous; states are made so.

n rows, I and O widths of a product, C model width, B batch, T positions, S slots, H and G heads, D head width.
"""

from __future__ import annotations

import functools
import mmap
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recyclegpt.kernels.build import KernelsUnavailableError, load

LANES = 16
DTYPES = (torch.bfloat16, torch.float32)
"""Formats of states. Weights may be int8 as well."""


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether states of this kind can be computed here; one warning says why not where a compiler is the reason."""
    return device.type == "cpu" and dtype in DTYPES and _loaded()


def are_loaded() -> bool:
    """Whether something has loaded the operators; asking compiles nothing."""
    return bool(_loaded.cache_info().currsize) and _loaded()


# What a traced graph needs to know: the shapes of the results.
SHAPES: dict[str, Callable[..., Tensor]] = {
    "linear": lambda x, _weight, out_features, _scale=None, _plus=None: x.new_empty(len(x), out_features),
    "attend": lambda q, *_: torch.empty_like(q),
    "rms_norm": lambda x, *_: torch.empty_like(x),
    "swiglu": lambda gate_up: gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2),
    "rotate_store": lambda qkv, _cos, _sin, _positions, key, _value: qkv.new_empty(
        *qkv.shape[:2], qkv.shape[2] - 2 * key.shape[1], qkv.shape[3]
    ),
}


@functools.cache
def _loaded() -> bool:
    try:
        load()
    except KernelsUnavailableError as error:
        warnings.warn(f"decoding with torch's own kernels, at about half the speed: {error}", stacklevel=4)
        return False
    for name, shape_of in SHAPES.items():
        torch.library.register_fake(f"recyclegpt::{name}")(shape_of)
    return True


def pack(weight_OI: Tensor) -> Tensor:
    """The layout `linear` reads, 16 outputs side by side: `(O/16, I/2, 32)`, of int8 weights bytes `(O/16, I/4, 64)`.

    Zeros stand where O is no multiple of 16, or the I of int8 weights none of 32.

    Raises:
        ValueError: the input width is odd.
    """
    outputs, inputs = weight_OI.shape
    if inputs % 2:
        raise ValueError(f"an input width of {inputs} is odd")
    if weight_OI.dtype == torch.int8:
        bytes_OI = (F.pad(weight_OI, (0, -inputs % 32, 0, -outputs % LANES)).to(torch.int16) + 128).to(torch.uint8)
        return (
            bytes_OI.view(-1, LANES, bytes_OI.shape[1] // 4, 4).transpose(1, 2).reshape(len(bytes_OI) // LANES, -1, 64)
        )
    blocks = F.pad(weight_OI, (0, 0, 0, -outputs % LANES)).view(-1, LANES, inputs // 2, 2)
    order = (0, 2, 1, 3) if weight_OI.dtype == torch.bfloat16 else (0, 2, 3, 1)
    return blocks.permute(order).reshape(-1, inputs // 2, 2 * LANES)


class HugePages:
    """Memory for packed weights in pages of 2 MiB, where Linux has them: fewer addresses to look up.

    A pass reads each weight once, and a processor finds only some thousands of pages of 4 KiB without looking them up.
    """

    CHUNK = 64 << 20

    def __init__(self) -> None:
        self.free = torch.empty(0, dtype=torch.uint8)

    def hold(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor there; itself where the system has no such pages."""
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return tensor
        num_bytes = -(-tensor.nbytes // 64) * 64
        if num_bytes > len(self.free):
            pages = mmap.mmap(-1, max(num_bytes, self.CHUNK), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_HUGEPAGE)
            self.free = torch.frombuffer(pages, dtype=torch.uint8)
        held = self.free[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.free = self.free[num_bytes:]
        return held.copy_(tensor)


def quantise(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 weights and the fp32 step `(16 O/16,)` of each output: its largest weight becomes 127."""
    weight_OI = weight_OI.float()
    step_O = weight_OI.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight_OI / step_O[:, None]).round().to(torch.int8), F.pad(step_O, (0, -len(step_O) % LANES))


def linear(
    x_nI: Tensor, packed: Tensor, out_features: int, scale: Tensor | None = None, plus_nO: Tensor | None = None
) -> Tensor:
    """Return `(n, O)`: rows x times a packed weight (`pack`), times the scale of int8 weights, plus what is given.

    For int8 weights the rows are rounded to int8 too, with a step for each group of 32 inputs.
    """
    result: Tensor = torch.ops.recyclegpt.linear.default(
        x_nI.contiguous(), packed, out_features, scale, None if plus_nO is None else plus_nO.contiguous()
    )
    return result


def rms_norm(x_nC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Rows over their root mean square, times the weight, `(n, C)`."""
    result: Tensor = torch.ops.recyclegpt.rms_norm.default(x_nC.contiguous(), weight_C, eps)
    return result


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up `(n, F)` of rows that hold both, `(n, 2 F)`."""
    result: Tensor = torch.ops.recyclegpt.swiglu.default(gate_up.contiguous())
    return result


def most_likely(x_nV: Tensor) -> Tensor:
    """Index of each row's largest value `(n,)`: the first of equals, NaN counting as the largest."""
    result: Tensor = torch.ops.recyclegpt.most_likely.default(x_nV.contiguous())
    return result


def exponential_noise(keys_n2: Tensor, ids_V: Tensor) -> Tensor:
    """Exponential noise `(n, V)` in fp32 of these token ids, each a hash of an id and a row's two 32-bit keys."""
    result: Tensor = torch.ops.recyclegpt.exponential_noise.default(keys_n2.contiguous(), ids_V)
    return result


def rotate_store(
    qkv_BTND: Tensor, cos_SD: Tensor, sin_SD: Tensor, positions_BT: Tensor, key_BGSD: Tensor, value_BGSD: Tensor
) -> Tensor:
    """Rotated queries `(B, T, H, D)`; the keys, rotated, and the values go into the cache at their positions."""
    result: Tensor = torch.ops.recyclegpt.rotate_store.default(
        qkv_BTND.contiguous(), cos_SD, sin_SD, positions_BT.contiguous(), key_BGSD, value_BGSD
    )
    return result


def attend(q_BTHD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, positions_BT: Tensor) -> Tensor:
    """Attention `(B, T, H, D)` of each query to the slots up to its own position."""
    result: Tensor = torch.ops.recyclegpt.attend.default(
        q_BTHD.contiguous(), key_BGSD, value_BGSD, positions_BT.contiguous()
    )
    return result


class Stack(NamedTuple):
    """What `states` and `draft` run through, held as addresses: whoever makes it keeps the tensors."""

    like: Tensor
    """`(..., C)` in the format of the states; the embedding."""
    ends_11: Tensor
    """Addresses of embedding, LM head, norms and fold, in the order of `Ends` in `pass.h`."""
    layers_L16: Tensor
    """Of each layer's weights, in the order of `Layer`. The SwiGLU width is a multiple of 16."""
    cos_SD: Tensor
    """Rotary table in fp32, as `sin_SD`."""
    sin_SD: Tensor
    shape: tuple[int, int, int, int]
    """H, G, D and SwiGLU width."""
    num_outputs: int
    """Of the LM head."""
    eps: float
    """Of all norms."""
    has_bytes: bool
    """The weights are int8."""

    def arguments(self, num_slots: int) -> tuple[int | float | bool, ...]:
        """The last of an operator's."""
        return (*self.shape, num_slots, self.num_outputs, self.eps, self.has_bytes)


def states(
    stack: Stack, tokens_BT: Tensor, hidden_BTC: Tensor | None, positions_BT: Tensor, slots_L2: Tensor, num_slots: int
) -> Tensor:
    """States `(B, T, C)` of tokens, and of the states they follow where there is a fold, with one team of threads.

    `slots_L2` holds the addresses of each layer's keys and values `(B, G, num_slots, D)`.
    """
    hidden_BTC = None if hidden_BTC is None else hidden_BTC.contiguous()
    result: Tensor = torch.ops.recyclegpt.states.default(
        tokens_BT.contiguous(), hidden_BTC, stack.like, stack.ends_11, stack.layers_L16, slots_L2,
        stack.cos_SD, stack.sin_SD, positions_BT.contiguous(), *stack.arguments(num_slots),
    )  # fmt: skip
    return result


def draft(
    stack: Stack, state_BC: Tensor, tokens_BS: Tensor, newest_B: Tensor, num: int, threshold: float, slots_L2: Tensor,
    num_slots: int,
) -> Tensor:  # fmt: skip
    """Write `num` greedily drafted tokens of each row into `tokens_BS`, behind position `newest_B`.

    Returns:
        For how many of them the product of the largest probabilities was above the threshold, `(B,)`; the rest need not
        be there.
    """
    result: Tensor = torch.ops.recyclegpt.draft.default(
        state_BC.contiguous(), tokens_BS, newest_B, stack.ends_11, stack.layers_L16, slots_L2,
        stack.cos_SD, stack.sin_SD, *stack.arguments(num_slots), num, threshold,
    )  # fmt: skip
    return result
