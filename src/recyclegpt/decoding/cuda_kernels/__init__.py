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
import subprocess
import warnings

import torch

from recyclegpt.models.config import ModelConfig

MAX_ROWS = 16
"""Rows of one product: the height of the tensor cores' smallest tile. With more, torch's own products are used."""
DTYPES = (torch.bfloat16,)
OLDEST = (8, 0)
"""Compute capability: the first with asynchronous copies and bf16 tensor cores."""


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether states of this kind can be computed here; one warning says why not where Triton is the reason."""
    if device.type != "cuda" or dtype not in DTYPES or torch.cuda.get_device_capability(device) < OLDEST:
        return False
    return _loaded()


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
def _loaded() -> bool:
    try:
        # It comes with torch's CUDA builds for Linux.
        import triton

        # Compiles what Triton speaks to the device with.
        triton.runtime.driver.active.get_current_target()
    except (ImportError, OSError, RuntimeError, AssertionError, subprocess.CalledProcessError) as error:
        warnings.warn(
            f"decoding with torch's own kernels, slower and not exact in bf16: Triton does not work here ({error}); it "
            "needs a C compiler and Python's headers",
            stacklevel=4,
        )
        return False
    return True
