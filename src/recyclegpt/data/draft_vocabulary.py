"""Which token ids a module may propose: the most frequent of a corpus, or a list from a file. V vocabulary, D ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError

_KEY = "recycle.draft_vocab"


def frequent_ids(counts_V: NDArray[np.int64], tokenizer: TextTokenizer, size: int) -> NDArray[np.int64]:
    """The most frequent ids, ascending `(D,)`, D = `size`; of equally frequent ones the lower.

    Special tokens and single bytes are always among them, so that a draft can end a text and spell any word.

    Raises:
        ConfigError: there are fewer ids, or more special tokens and bytes.
    """
    always_V = tokenizer.token_num_bytes() == 1
    always_V[list(tokenizer.special_ids)] = True
    least = int(always_V.sum())
    if not least <= size <= len(counts_V):
        raise ConfigError(
            f"{_KEY}: {size} is not between {least:,}, the special tokens and single bytes, and {len(counts_V):,}, "
            "the vocabulary"
        )
    order = np.lexsort((np.arange(len(counts_V)), -counts_V, ~always_V))
    return np.sort(order[:size])


def read_draft_ids(file: str | Path) -> NDArray[np.int64]:
    """The ids `(D,)` that a JSON file lists, ascending.

    Raises:
        ConfigError: it cannot be read, or is no list of different ids.
    """
    try:
        listed = json.loads(Path(file).expanduser().read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{_KEY}: {file} cannot be read ({error}); give a number or a JSON list") from error
    ids = listed if isinstance(listed, list) else []
    if len(ids) < 2 or any(type(one) is not int or one < 0 for one in ids) or len({*ids}) < len(ids):
        raise ConfigError(f"{_KEY}: {file} is no JSON list of two or more different token ids")
    return np.sort(np.asarray(ids, np.int64))
