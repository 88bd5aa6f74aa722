"""Many documents from one model: prompts continued in batches, each document with random numbers of its own.

Documents are written in pieces: within one, a row that has ended takes the next prompt at once. A document depends only
on the seed and on its place: its split, its number, and the piece that the number falls into. It does not matter which
pieces were written before, in this process or another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from recyclegpt.decoding.decoder import Decoder
from recyclegpt.decoding.generation import Counts
from recyclegpt.decoding.output import OutputTracker
from recyclegpt.decoding.sampling import Sampler, SamplingConfig
from recyclegpt.decoding.session import Session, StepRecord
from recyclegpt.decoding.strategies import Strategy
from recyclegpt.errors import ConfigError

ROUNDS = 16
"""Documents of a piece for each row of a batch. Towards its end rows stand empty, and a killed process loses it."""
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
    batch: int = 16
    """Rows decoded side by side."""
    sampled_share: float = 1.0
    """Of the documents; the others are greedy. It does not matter where `sampling` is greedy itself."""
    suffix: Sequence[int] = ()
    """What a chat template writes after an answer, the token that ends one included."""

    def __post_init__(self) -> None:
        if problems := text_problems(self.strategy):
            raise ConfigError(problems)
        self.stop_tokens = [*self.stop_ids, *range(self.vocab_size, self.decoder.model.config.vocab_size)]

    def write(
        self, prompts: Sequence[Sequence[int]], split: int, first: int, written: Callable[[int], object] | None = None
    ) -> list[Document]:
        """Continue one piece: documents `first`, `first + 1`, ... of a split, which is a number too.

        `written` is called with the number of tokens of each document when it ends.
        """
        numbers = [self._mixed(split, first + place) for place in range(len(prompts))]
        greedy = [number >= self.sampled_share * 2**64 for number in numbers]
        found: dict[int, Document] = {}
        for sampling, places in (
            (self.sampling, [place for place in range(len(prompts)) if not greedy[place]]),
            (replace(self.sampling, temperature=0.0), [place for place in range(len(prompts)) if greedy[place]]),
        ):
            for place, new in self._continue(sampling, [(place, prompts[place], numbers[place]) for place in places]):
                found[place] = self._document(list(prompts[place]), new)
                if written is not None:
                    written(found[place].num_new)
        return [found[place] for place in range(len(prompts))]

    @torch.no_grad()
    def _continue(
        self, sampling: SamplingConfig, asked: Sequence[tuple[int, Sequence[int], int]]
    ) -> Iterator[tuple[int, list[int]]]:
        """The new tokens of each (place, prompt, number), as they are complete."""
        if not asked:
            return
        decoder, strategy, m = self.decoder, self.strategy, self.strategy.num_recycled
        context = decoder.model.config.context_length
        generators = [self._generator(number) for _, _, number in asked]
        longest = max(len(prompt) for _, prompt, _ in asked) + self.new_tokens
        batch = min(self.batch, len(asked))
        key, session, step = decoder.take_session(
            strategy, Sampler(sampling, generators[:batch]), batch, longest + m + 2
        )
        num_slots = session.text.tokens_BS.shape[1]
        # A prompt is read alone: side by side with others, a long one would be rounded differently.
        single = Session(decoder.model, strategy, Sampler(sampling, generators[:1]), 1, num_slots)
        waiting = iter(zip(asked, generators, strict=True))
        rows: dict[int, _Text] = {}
        decoder.model.eval()
        while True:
            for row in set(range(batch)) - rows.keys():
                for (place, prompt, _), generator in waiting:
                    tracker = OutputTracker([prompt], self.new_tokens, context, strategy, Counts(), self.stop_tokens)
                    text = _Text(place, tracker, [])
                    single.sampler.take([generator])
                    read = min(decoder.bucketed(len(prompt) + 2 * m + 2), num_slots)
                    single.prefill([prompt], tracker.limits, read)
                    if text.ends(single.record_5B[:, 0].tolist(), single.text.tokens_BS[0].tolist(), 0):
                        yield place, text.new
                        continue
                    session.take_row(row, single, len(prompt))
                    rows[row] = text
                    break
            if not rows:
                break
            furthest = int(session.text.position_B.max())
            session.sampler.refill()
            step(min(decoder.bucketed(furthest + 2 * m + 2), num_slots))
            columns, first = session.record_5B.T.tolist(), min(text.tracker.num_written[0] for text in rows.values())
            tokens_BS = session.text.tokens_BS[:, first : furthest + m + 2].tolist()
            for row, text in list(rows.items()):
                if text.ends(columns[row], tokens_BS[row], first):
                    yield text.place, text.new
                    session.text.limit_B[row] = session.text.position_B[row]
                    del rows[row]
        decoder.give_back(key, session, step)

    def _document(self, prompt: list[int], new: list[int]) -> Document:
        last, eos_id = new[-1], self.stop_ids[0]
        end = "stop" if last in self.stop_ids else "unknown" if last >= self.vocab_size else "length"
        num_new = len(new) - (end == "unknown")
        if last == eos_id or end == "unknown" or (end == "stop" and self.suffix):
            new = new[:-1]  # another stop token is the end of a turn, and part of a text without a template
        tokens = [*prompt, *new, *self.suffix]
        return Document(tokens if self.suffix and tokens[-1] == eos_id else [*tokens, eos_id], end, num_new)

    def _mixed(self, split: int, number: int) -> int:
        # Hashed: with seed + number, the next seed would write the next document's text.
        return int(np.random.SeedSequence([self.seed, split, number]).generate_state(1, np.uint64)[0])

    def _generator(self, mixed: int) -> torch.Generator:
        return torch.Generator(device=self.decoder.model.device).manual_seed(mixed >> 1)


class _Text(NamedTuple):
    """A document that is being written."""

    place: int
    tracker: OutputTracker
    new: list[int]

    def ends(self, record: list[int], tokens: list[int], first_slot: int) -> bool:
        """Take what a step wrote; whether the text is complete."""
        columns = StepRecord(*([number] for number in record))
        for found in self.tracker.update(columns, [tokens], first_slot):
            self.new.extend(found.tokens)
        return not self.tracker.unfinished


def text_problems(strategy: Strategy) -> list[str]:
    """Why a strategy's text is not the backbone's own; empty if it is."""
    if strategy.lossless:
        return []
    return [
        f"strategy: {strategy.name} keeps tokens that the backbone did not choose, so its text is not the backbone's "
        "own; use autoregressive or verified"
    ]


def pieces(num_documents: int, batch: int) -> list[tuple[int, int]]:
    """Every piece as the numbers of its first document and of the one after its last."""
    size = ROUNDS * batch
    return [(first, min(first + size, num_documents)) for first in range(0, num_documents, size)]
