"""Many documents from one model: prompts continued in fixed batches, each document with random numbers of its own.

A document depends only on the seed and on its place: its split, its number, and the batch that the number falls into.
It does not matter which batches were written before, in this process or another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class BulkConfig:
    """How many documents, and how long.

    Raises:
        ConfigError: naming every field out of range.
    """

    num_documents: int
    """Of the training split."""
    num_val_documents: int
    prompt_tokens: int
    """Tokens of each document that come from the corpus."""
    new_tokens: int
    """Most tokens that the model adds."""
    batch: int
    """Documents written at once. It may change the text: sums in another order round differently."""

    def __post_init__(self) -> None:
        problems = [f"{name}: {value} is not a positive number" for name, value in asdict(self).items() if value < 1]
        if problems:
            raise ConfigError(problems)

    def problems_with(self, context_length: int) -> list[str]:
        """Why a model of this context cannot write such documents; empty if it can."""
        if self.prompt_tokens + self.new_tokens <= context_length:
            return []
        return [
            f"bulk.new_tokens: {self.new_tokens} after bulk.prompt_tokens={self.prompt_tokens} exceed the context of "
            f"{context_length}; take {max(0, context_length - self.prompt_tokens)} or fewer"
        ]


class Document(NamedTuple):
    """Prompt, continuation and one end token."""

    tokens: list[int]
    end: str
    """One of `ENDS`."""
    num_new: int
    """Tokens that the model wrote, its end token among them."""


class BulkWriter:
    """Continues prompts to documents.

    Args:
        decoder: of the model that writes.
        strategy: a lossless one, since another's text is not the backbone's.
        sampling: how tokens are chosen.
        seed: of all documents together.
        new_tokens: most tokens to add to each.
        stop_ids: tokens at which a text ends; the first ends a document.
        vocab_size: token ids below it mean something to the tokenizer.

    Raises:
        ConfigError: the strategy is not lossless.
    """

    def __init__(
        self,
        decoder: Decoder,
        strategy: Strategy,
        sampling: SamplingConfig,
        seed: int,
        new_tokens: int,
        stop_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        if problems := text_problems(strategy):
            raise ConfigError(problems)
        self.decoder, self.strategy, self.sampling, self.seed = decoder, strategy, sampling, seed
        self.new_tokens, self.eos_id, self.vocab_size = new_tokens, stop_ids[0], vocab_size
        self.stop_ids = stop_ids
        self.stop_tokens = [*stop_ids, *range(vocab_size, decoder.model.config.vocab_size)]

    def write(self, prompts: Sequence[Sequence[int]], split: int, first: int) -> list[Document]:
        """Continue one batch: documents `first`, `first + 1`, ... of a split, which is a number too."""
        generators = [self._generator(split, first + row) for row in range(len(prompts))]
        result = self.decoder.generate(
            prompts, self.strategy, self.new_tokens, self.sampling, self.stop_tokens, generators=generators
        )
        return [self._document(list(prompt), new) for prompt, new in zip(prompts, result.tokens, strict=True)]

    def _document(self, prompt: list[int], new: list[int]) -> Document:
        end = "length"
        if new[-1] == self.eos_id:
            new, end = new[:-1], "stop"
        elif new[-1] in self.stop_ids:  # the end of a turn, which is part of the text
            return Document([*prompt, *new, self.eos_id], "stop", len(new))
        elif new[-1] >= self.vocab_size:
            new, end = new[:-1], "unknown"
        return Document([*prompt, *new, self.eos_id], end, len(new) + (end == "stop"))

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
