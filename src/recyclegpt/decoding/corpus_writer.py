"""Many documents from one model: prompts continued in fixed batches, each document with random numbers of its own.

A document depends only on the seed and on its place: its split, its number, and the batch that the number falls into.
It does not matter which batches were written before, in this process or another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from recyclegpt.decoding.decoder import Decoder
from recyclegpt.decoding.sampling import SamplingConfig
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.errors import ConfigError

ENDS = ("length", "stop", "unknown")
"""How a document ended: at its length limit; at an end token; before a token id that the tokenizer does not know
(a vocabulary may be padded, and a model that is hardly trained writes such ids)."""


class Document(NamedTuple):
    """Prompt, continuation and one end token."""

    tokens: list[int]
    end: str
    """One of `ENDS`."""
    num_new: int
    """Tokens that the model wrote, its end token among them."""


@dataclass
class BulkWriter:
    """Continues prompts to documents.

    Raises:
        ConfigError: the strategy is not lossless.
    """

    decoder: Decoder
    strategy: Strategy
    sampling: SamplingConfig
    seed: int
    """Of all documents together."""
    new_tokens: int
    """Most tokens to add to each."""
    stop_ids: Sequence[int]
    """Tokens at which a text ends; the first ends a document."""
    vocab_size: int
    """Token ids below it mean something to the tokenizer."""

    def __post_init__(self) -> None:
        if problems := text_problems(self.strategy):
            raise ConfigError(problems)
        self.stop_tokens = [*self.stop_ids, *range(self.vocab_size, self.decoder.model.config.vocab_size)]

    def write(self, prompts: Sequence[Sequence[int]], split: int, first: int) -> list[Document]:
        """Continue one batch: documents `first`, `first + 1`, ... of a split, which is a number too."""
        generators = [self._generator(split, first + row) for row in range(len(prompts))]
        result = self.decoder.generate(
            prompts, self.strategy, self.new_tokens, self.sampling, self.stop_tokens, generators=generators
        )
        return [self._document(list(prompt), new) for prompt, new in zip(prompts, result.tokens, strict=True)]

    def _document(self, prompt: list[int], new: list[int]) -> Document:
        last, eos_id = new[-1], self.stop_ids[0]
        end = "stop" if last in self.stop_ids else "unknown" if last >= self.vocab_size else "length"
        num_new = len(new) - (end == "unknown")
        if last == eos_id or end == "unknown":  # another stop token is the end of a turn, and part of the text
            new = new[:-1]
        return Document([*prompt, *new, eos_id], end, num_new)

    def _generator(self, split: int, number: int) -> torch.Generator:
        # Hashed: with seed + number, the next seed would write the next document's text.
        mixed = int(np.random.SeedSequence([self.seed, split, number]).generate_state(1, np.uint64)[0])
        return torch.Generator(device=self.decoder.model.device).manual_seed(mixed >> 1)


def text_problems(strategy: Strategy) -> list[str]:
    """Why a strategy's text is not the backbone's own; empty if it is."""
    if strategy.lossless:
        return []
    return [
        f"strategy: {strategy.name} keeps tokens that the backbone did not choose, so its text is not the backbone's "
        "own; use autoregressive or verified"
    ]


def batches(num_documents: int, batch: int) -> list[tuple[int, int]]:
    """Every batch as the numbers of its first document and of the one after its last."""
    return [(first, min(first + batch, num_documents)) for first in range(0, num_documents, batch)]
