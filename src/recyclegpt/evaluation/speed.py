"""Tokens per second of the decoders, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from recyclegpt.decoding import Counts, Decoder, Sampler, SamplingConfig, Strategy
from recyclegpt.evaluation.ceilings import synchronise


@dataclass
class Speed:
    """One strategy's measurement. Rates count the tokens and seconds after the prompt's pass."""

    strategy: str
    repetitions: list[float] = field(default_factory=list)
    """Tokens per second of each repetition: all its tokens over all its seconds."""
    first_token_s: list[float] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    texts: list[list[int]] = field(default_factory=list)
    """What was written after each prompt, in the last repetition."""
    recycled: list[list[bool]] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Median over repetitions."""
        return statistics.median(self.repetitions)

    def speedup_over(self, baseline: Speed) -> float:
        """Median of the ratios within each repetition, so that a machine's slow moments hit both."""
        pairs = zip(self.repetitions, baseline.repetitions, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def measure_speed(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    strategies: Sequence[Strategy],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    repetitions: int = 5,
    budget_s: float = float("inf"),
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """Decode every prompt, one at a time, with each strategy in turn; after a warm-up, repeat while the budget lasts.

    Args:
        decoder: model in the dtype to measure.
        prompts: token ids; decoded at batch size 1.
        strategies: measured interleaved, so that drift of the machine meets all of them.
        max_new_tokens: length of each continuation. Stop tokens are not obeyed: all strategies write equally many.
        sampling: greedy if None.
        repetitions: at most this many rounds over all prompts and strategies; one is always done.
        budget_s: no further round is begun that would end after this many seconds.
        seed: of the sampler.
        clock: seconds, for tests.
    """
    sampling = SamplingConfig() if sampling is None else sampling
    speeds = {strategy.name: Speed(strategy.name) for strategy in strategies}
    begin = clock()
    for strategy in strategies:
        _decode(decoder, prompts[:1], strategy, min(max_new_tokens, 8), sampling, seed, clock)
    for repetition in range(repetitions):
        round_begin = clock()
        for strategy in strategies:
            run = _decode(decoder, prompts, strategy, max_new_tokens, sampling, seed, clock)
            speed = speeds[strategy.name]
            if run.num_timed:
                speed.repetitions.append(run.num_timed / run.seconds)
            speed.first_token_s.append(run.first_token_s)
            speed.texts, speed.recycled = run.texts, run.recycled
            if repetition == 0:  # a repetition writes the same text again
                speed.counts = run.counts
        now = clock()
        if now - begin + (now - round_begin) > budget_s:
            break
    return speeds


@dataclass
class _Run:
    num_timed: int = 0
    seconds: float = 0.0
    first_token_s: float = 0.0
    counts: Counts = field(default_factory=Counts)
    texts: list[list[int]] = field(default_factory=list)
    recycled: list[list[bool]] = field(default_factory=list)


def _decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    clock: Callable[[], float],
) -> _Run:
    device = decoder.model.lm_head.weight.device
    run = _Run()
    for number, prompt in enumerate(prompts):
        sampler = Sampler.seeded(sampling, 1, seed + number, device)
        text: list[int] = []
        recycled: list[bool] = []
        synchronise(device)
        begin = clock()
        stream = decoder.stream([prompt], strategy, max_new_tokens, sampler, counts=run.counts)
        first = next(stream, None)
        synchronise(device)
        middle = clock()
        if first is not None:
            text += first.tokens
            recycled += first.recycled
        num_first = len(text)
        for emitted in stream:
            text += emitted.tokens
            recycled += emitted.recycled
        synchronise(device)
        run.num_timed += len(text) - num_first
        run.seconds += clock() - middle
        run.first_token_s += (middle - begin) / len(prompts)
        run.texts.append(text)
        run.recycled.append(recycled)
    return run
