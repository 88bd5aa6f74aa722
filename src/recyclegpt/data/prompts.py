"""Prompts for decoding, taken from held-out tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recyclegpt.errors import ConfigError


def choose_prompts(tokens: NDArray[np.int64], eos_id: int, num: int, length: int) -> NDArray[np.int64]:
    """Beginnings of different documents, (num, length); the same at every call.

    Where fewer documents are long enough, more prompts come from inside documents. No two overlap.

    Raises:
        ConfigError: if the tokens do not hold that many prompts.
    """
    starts = np.concatenate([[0], np.flatnonzero(tokens == eos_id) + 1])
    stops = np.append(starts[1:] - 1, len(tokens))
    fitting = starts[stops - starts >= length]
    if len(fitting) > num:
        fitting = fitting[np.linspace(0, len(fitting), num, endpoint=False).astype(int)]
    chosen: list[int] = fitting.tolist()
    for start in range(0, len(tokens) - length + 1, length):
        if len(chosen) >= num:
            break
        if all(abs(start - other) >= length for other in chosen):
            chosen.append(start)
    if len(chosen) < num:
        raise ConfigError(
            f"data: {num} prompts of {length} tokens do not fit into {len(tokens)} validation tokens; "
            "ask for fewer or shorter prompts, or give more validation text"
        )
    return np.stack([tokens[start : start + length] for start in chosen])
