"""Tokens that stand for bytes: training a byte-level BPE, what tokens stand for, one id at a time, and its bytes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token that stands for one byte of a character without a token of its own (`<0xE4>`)."""


def byte_symbols() -> list[str]:
    """The printable character that byte-level tokenizers write for each of the 256 bytes (GPT-2's table)."""
    symbols = sorted(ByteLevel.alphabet())
    printable = {ord(symbol): symbol for symbol in symbols if ord(symbol) < 256}
    others = iter(symbols[len(printable) :])
    return [printable.get(byte) or next(others) for byte in range(256)]


def count_bytes(tokenizer: Tokenizer, content: dict[str, Any], vocab_size: int) -> NDArray[np.int64]:
    """Bytes of UTF-8 text of each id, `(V,)`; special tokens and unused ids stand for none."""
    is_byte_level = '"type": "ByteLevel"' in json.dumps(content.get("decoder"))
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    num_bytes = np.zeros(vocab_size, np.int64)
    symbols = set(ByteLevel.alphabet())
    for piece, token_id in vocab.items():
        if is_byte_level and symbols.issuperset(piece):
            num_bytes[token_id] = len(piece)
        else:
            num_bytes[token_id] = 1 if BYTE_PIECE.fullmatch(piece) else len(piece.replace("▁", " ").encode())
    num_bytes[vocab.get(content["model"].get("unk_token"), [])] = 0
    for added in content["added_tokens"]:
        num_bytes[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return num_bytes


class TextStream:
    """Turns ids into text as they come; all that is returned is together what `decode` gives.

    Bytes of an unfinished character wait for the next id, and so does a run of ids that stand for single bytes: one bad
    byte in it changes what the others become.

    Args:
        decode: turns ids into text; bytes that are not UTF-8 become U+FFFD.
        byte_ids: ids that stand for a single byte.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], byte_ids: Collection[int]) -> None:
        self._decode = decode
        self._byte_ids = byte_ids
        self._recent: list[int] = []
        """Ids returned last, which decide about a space before what follows, then those that wait."""
        self._num_returned = 0

    def step(self, token_id: int) -> str:
        """Text that is final with this id; often one word, sometimes empty."""
        self._recent.append(token_id)
        if token_id in self._byte_ids:
            return ""
        text = self._pending()
        return "" if text.endswith("\ufffd") else self._return(text)

    def finish(self) -> str:
        """What was still pending after the last id (an unfinished character shows as U+FFFD)."""
        return self._return(self._pending())

    def _pending(self) -> str:
        before = self._decode(self._recent[: self._num_returned])
        return self._decode(self._recent)[len(before) :]

    def _return(self, text: str) -> str:
        if text:
            self._recent = self._recent[self._num_returned :]
            self._num_returned = len(self._recent)
        return text


_LONGEST_RUN = 1_000
"""Characters; the longest in the default corpus are shorter, and so is every useful token."""
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_RUN + 1},}}|\s{{{_LONGEST_RUN + 1},}}")


def train_bpe(texts: Iterable[str], vocab_size: int, end_token: str) -> Tokenizer:
    """A byte-level BPE learned from `texts`; smaller than `vocab_size` where text is scarce."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_token],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),  # it prints blank lines all the same
    )
    tokenizer.train_from_iterator(_bounded(texts), trainer)
    return tokenizer


def _bounded(texts: Iterable[str]) -> Iterator[str]:
    """Texts cut inside longer runs of letters or of blanks, in whose length training is quadratic."""
    for text in texts:
        start = 0
        for run in _LONG_RUN.finditer(text):
            for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
                yield text[start:cut]
                start = cut
        yield text[start:]
