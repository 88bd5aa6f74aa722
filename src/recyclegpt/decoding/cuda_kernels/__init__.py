"""Operators of a decoding pass on CUDA, in Triton. Slow twins of each stand in the tests.

A pass over a few rows reads every weight once and does little else, so what counts is how many kernels there are and
how many bytes each keeps under way. Six kernels make a layer: queries, keys and values (normed, rotated and stored),
attention in pieces, its combination, output, gate and up (normed and multiplied), down.

A row's result depends neither on the rows beside it nor on how many slots are read: rows are padded to one number,
every sum runs in one order, and nothing is tuned while decoding. So verified text equals autoregressive text token for
token in bf16 on a GPU too.
"""

from __future__ import annotations

import functools
import importlib.util

import torch

from recyclegpt.models.config import ModelConfig

MAX_ROWS = 16
"""Rows of one product: the height of the tensor cores' smallest tile. With more, torch's own products are used."""
DTYPES = (torch.bfloat16,)
OLDEST = (8, 0)
"""Compute capability: the first with asynchronous copies and bf16 tensor cores."""


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether states of this kind can be computed here."""
    return device.type == "cuda" and dtype in DTYPES and _installed() and torch.cuda.get_device_capability() >= OLDEST


def unfitting(config: ModelConfig) -> str:
    """What of a shape the kernels cannot hold, in words; empty where all of it fits.

    Widths of whole 32-byte sectors, so that every load is 16 bytes wide; heads whose halves are whole tiles.
    """
    widths = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    wrong = [f"{name} {width} is no multiple of 16" for name, width in widths.items() if width % 16]
    if config.head_dim < 32 or config.head_dim & (config.head_dim - 1):
        wrong.append(f"head_dim {config.head_dim} is not 32, 64, 128 or 256")
    elif config.head_dim > 256:
        wrong.append(f"head_dim {config.head_dim} is above 256")
    return ", ".join(wrong)


@functools.cache
def _installed() -> bool:
    # It comes with torch's CUDA builds, except on systems it does not support.
    return importlib.util.find_spec("triton") is not None
