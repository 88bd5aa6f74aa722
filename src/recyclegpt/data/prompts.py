"""Prompts for decoding: a few spread over held-out tokens to watch, or many drawn from a split to be continued."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recyclegpt.data.packed_rows import Tokens
from recyclegpt.errors import ConfigError

_CHUNK = 1 << 22


def choose_prompts(tokens: NDArray[np.int64], eos_id: int, num: int, length: int) -> NDArray[np.int64]:
    """Beginnings of different documents, (num, length); the same at every call.

    If too few documents are long enough, more prompts come from inside documents. No two overlap.

    Raises:
        ConfigError: the tokens do not hold `num` prompts.
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


def draw_prompts(tokens: Tokens, eos_id: int, num: int, length: int, seed: int) -> NDArray[np.int64]:
    """Beginnings of documents drawn at random, (num, length), none twice; the same for the same seed.

    If too few documents are long enough, the rest are windows drawn from inside documents: these may overlap, but no
    two start at the same place, and none crosses the end of its document.

    Raises:
        ConfigError: the tokens do not hold `num` prompts.
    """
    ends = [np.empty(0, np.int64)]
    for start in range(0, tokens.num_tokens, _CHUNK):
        read = tokens.read(start, min(start + _CHUNK, tokens.num_tokens))
        ends.append(np.flatnonzero(read == eos_id) + start)
    stops = np.append(np.concatenate(ends), tokens.num_tokens)
    starts = np.concatenate([[0], stops[:-1] + 1])
    fits = stops - starts >= length
    starts, stops = starts[fits], stops[fits]
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(starts)[:num]
    if (num_missing := num - len(chosen)) > 0:
        # A document of n tokens holds n - length windows besides its beginning; number them all.
        upto = np.cumsum(stops - starts - length)
        num_windows = int(upto[-1]) if len(upto) else 0
        if num_windows < num_missing:
            raise ConfigError(
                f"data: {num} prompts of {length} tokens are needed, and a split of {tokens.num_tokens} tokens "
                f"holds {len(chosen) + num_windows}; ask for fewer (num_documents, num_val_documents) or shorter ones "
                "(prompt_tokens), or give more text"
            )
        number = draw.choice(num_windows, num_missing, replace=False)
        document = np.searchsorted(upto, number, side="right")
        chosen = np.concatenate([chosen, stops[document] - length - (upto[document] - 1 - number)])
    return np.stack([tokens.read(start, start + length) for start in chosen.tolist()])
