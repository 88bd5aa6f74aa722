"""From a source to what training reads: tokenizer, training tokens or stream, validation tokens, fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recyclegpt.data.corpus import build_shards, build_tokenizer
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.packed_rows import Tokens
from recyclegpt.data.shards import TokenShards, open_shards
from recyclegpt.data.skipped import Skipped
from recyclegpt.data.sources import Source, Split, take
from recyclegpt.data.tokenized import Tokenized
from recyclegpt.data.tokenizer import TextTokenizer, TokenizerConfig
from recyclegpt.errors import ConfigError

_SAMPLE_TOKENS = 1_000_000


@dataclass
class Corpus:
    """A corpus ready to be read."""

    tokenizer: TextTokenizer
    fingerprint: str
    """Of the text and its division into splits; the tokenizer has its own."""
    train: TokenShards | HFStream
    val: Tokens

    def sample(self) -> Tokens:
        """Training tokens to count: all of them, or the first million of a stream."""
        if isinstance(self.train, TokenShards):
            return self.train
        return read_stream(self.train, "train", self.tokenizer, Skipped(_SAMPLE_TOKENS), _SAMPLE_TOKENS)


class TokenArray:
    """Tokens in memory, read like shards."""

    def __init__(self, tokens: NDArray[np.int64]) -> None:
        self._tokens = tokens

    @property
    def num_tokens(self) -> int:
        """Their number."""
        return len(self._tokens)

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens start up to stop.

        Raises:
            IndexError: if the range leaves the array.
        """
        if not 0 <= start <= stop <= len(self._tokens):
            raise IndexError(f"tokens {start} to {stop} of {len(self._tokens)}")
        return self._tokens[start:stop]


def open_corpus(
    source: Source | HFStream | Tokenized, tokenizer: TokenizerConfig | None, cache_dir: Path, max_skipped: int
) -> Corpus:
    """Build or find tokenizer and tokens of `source`.

    Raises:
        ConfigError: naming what cannot be read.
    """
    if isinstance(source, Tokenized):
        built, train, val, digest = source.open(max_skipped)
        return Corpus(built, digest, train, val)
    if tokenizer is None:
        raise ConfigError(f"data.tokenizer: missing; only a tokenized corpus brings its own, {source.kind} does not")
    fingerprint = source.fingerprint()
    built = build_tokenizer(source, tokenizer, cache_dir, max_skipped, fingerprint)
    if isinstance(source, HFStream):
        skipped = Skipped(max_skipped, source.name)
        tokens = read_stream(source, "val", built, skipped)
        skipped.report()
        return Corpus(built, fingerprint, source, tokens)
    folder = build_shards(source, fingerprint, built, cache_dir, max_skipped)
    # Their checksums have just been compared or written.
    train, _ = open_shards(folder, "train", Skipped(0), verify=False)
    val, _ = open_shards(folder, "val", Skipped(0), verify=False)
    return Corpus(built, fingerprint, train, val)


def read_stream(
    source: HFStream, split: Split, tokenizer: TextTokenizer, skipped: Skipped, limit: int | None = None
) -> TokenArray:
    """The tokens of a split of a stream in memory, documents joined by the end token; about `limit` of them."""
    pieces: list[NDArray[np.int64]] = []
    length = 0
    for record in source.records(split):
        if not take(record, skipped, ""):
            continue
        pieces.append(np.array(tokenizer.encode_document(record.text), np.int64))
        length += len(pieces[-1])
        if limit is not None and length >= limit:
            break
    if not pieces:
        raise ConfigError([f"data.name: {source.name} has no readable {split} document", *skipped.problems])
    return TokenArray(np.concatenate(pieces)[:limit])
