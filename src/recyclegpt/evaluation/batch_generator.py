"""Generates continuations of many prompts of different lengths, each with its own settings."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from tqdm import tqdm

from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import Decoder, SamplingConfig, StopStrings, Strategy

log = logging.getLogger("recyclegpt")


class Asked(NamedTuple):
    max_new_tokens: int
    stop: tuple[str, ...]
    """The text ends before the first of these."""
    sampling: SamplingConfig


@dataclass
class BatchGenerator:
    """Generates continuations, `batch_size` at a time, and caches the results by request list.

    If a prompt and its text do not fit into the context, the prompt loses its oldest tokens, but keeps at least half
    the context. A text also ends at the end token. Text n of a list draws from a generator seeded `seed + n`.
    """

    decoder: Decoder
    strategy: Strategy
    tokenizer: TextTokenizer
    batch_size: int = 16
    seed: int = 0
    encode: Callable[[str], list[int]] | None = None
    """From a prompt to its ids; None: as a plain text."""
    num_cut: int = 0
    """Prompts that lost their oldest tokens."""
    _known: dict[tuple[tuple[str, Asked], ...], list[str]] = field(default_factory=dict, repr=False)

    def write(self, asked: Sequence[tuple[str, Asked]]) -> list[str]:
        key = tuple(asked)
        if key not in self._known:
            self._known[key] = self._write(asked)
        return self._known[key]

    def _write(self, asked: Sequence[tuple[str, Asked]]) -> list[str]:
        cut_before, texts = self.num_cut, [""] * len(asked)
        rows = [self._fitting(prompt, settings.max_new_tokens) for prompt, settings in asked]
        groups: dict[Asked, list[int]] = defaultdict(list)
        for number in sorted(range(len(asked)), key=lambda number: -len(rows[number])):
            groups[asked[number][1]].append(number)
        with tqdm(total=len(asked), desc=self.strategy.name, unit="text", disable=None, leave=False) as progress:
            for settings, numbers in groups.items():
                for begin in range(0, len(numbers), self.batch_size):
                    batch = numbers[begin : begin + self.batch_size]
                    for number, text in zip(batch, self._batch(rows, batch, settings), strict=True):
                        texts[number] = text
                    progress.update(len(batch))
        if cut := self.num_cut - cut_before:
            log.warning("%d of %d prompts did not fit into the context; their oldest tokens were left out",
                        cut, len(asked))  # fmt: skip
        return texts

    def _batch(self, rows: list[list[int]], numbers: list[int], settings: Asked) -> list[str]:
        device = self.decoder.model.device
        stop = StopStrings(settings.stop, self.tokenizer.decode)
        generation = self.decoder.generate(
            [rows[number] for number in numbers], self.strategy, settings.max_new_tokens, settings.sampling,
            self.tokenizer.stop_ids, stop_strings=stop,
            generators=[torch.Generator(device).manual_seed(self.seed + number) for number in numbers],
        )  # fmt: skip
        return [stop.cut(self.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in generation.tokens]

    def _fitting(self, prompt: str, max_new_tokens: int) -> list[int]:
        tokens, context = (
            (self.encode or self.tokenizer.encode_prompt)(prompt),
            self.decoder.model.config.context_length,
        )
        room = max(context - max_new_tokens, context // 2, 1)
        self.num_cut += len(tokens) > room
        return tokens[-room:]
