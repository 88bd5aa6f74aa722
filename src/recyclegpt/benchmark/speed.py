"""Tokens per second of the decoders, measured side by side."""

from __future__ import annotations

import itertools
import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from recyclegpt.decoding import Counts, Decoder, Sampler, SamplingConfig, Strategy
from recyclegpt.hardware.measure import Clock, synchronise


@dataclass
class Run:
    """All prompts decoded once. Rates count the tokens and seconds after the prefill."""

    num_timed: int = 0
    seconds: float = 0.0
    first_token_s: float = 0.0
    """Mean over batches of the time until a batch had its first tokens."""
    num_passes: int = 0
    """Backbone passes in the time counted."""
    counts: Counts = field(default_factory=Counts)
    texts: list[list[int]] = field(default_factory=list)
    """What was written after each prompt."""
    drafted: list[list[bool]] = field(default_factory=list)
    """Which of those tokens the drafter wrote."""

    def __add__(self, other: Run) -> Run:
        return Run(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass
class Speed:
    """One decoder's measurement: the same prompts in every repetition."""

    runs: list[Run] = field(default_factory=list)

    @property
    def repetitions(self) -> list[float]:
        """Tokens per second of each repetition: all its tokens over all its seconds."""
        return [run.num_timed / run.seconds for run in self.runs if run.num_timed]

    @property
    def counts(self) -> Counts:
        """Of all repetitions together."""
        return sum((run.counts for run in self.runs[1:]), self.runs[0].counts)

    @property
    def texts(self) -> list[list[int]]:
        """Of the first repetition."""
        return self.runs[0].texts

    @property
    def drafted(self) -> list[list[bool]]:
        """Of the first repetition."""
        return self.runs[0].drafted

    @property
    def tokens_per_s(self) -> float:
        return statistics.median(self.repetitions)

    @property
    def passes_per_s(self) -> float:
        """Backbone passes per second, median over repetitions."""
        return statistics.median(run.num_passes / run.seconds for run in self.runs if run.num_timed)

    def speedups(self, baseline: Speed) -> list[float]:
        """Ratio of the rates within each repetition, so that a machine's slow moments hit both."""
        return list(map(operator.truediv, self.repetitions, baseline.repetitions))

    def row(self, strategy: Strategy | None, baseline: Speed) -> dict[str, Any]:
        """What every benchmark says of a decoder: medians, spreads, counts. `strategy` is None for an outside one."""
        ratios = self.speedups(baseline)
        counts, m = self.counts, 0 if strategy is None else strategy.num_recycled
        return {
            "strategy": "transformers" if strategy is None else strategy.name,
            "drafter": strategy.drafter if strategy is not None and m else None,
            "num_recycled": m,
            "adaptive": strategy is not None and strategy.adaptive,
            "tokens_per_s": self.tokens_per_s,
            "spread": [min(self.repetitions), max(self.repetitions)],
            "speedup": statistics.median(ratios),
            "speedup_spread": [min(ratios), max(ratios)],
            "mean_accepted_length": counts.mean_accepted_length,
            "acceptance": counts.acceptance,
            "acceptance_by_position": counts.acceptance_by_position,
            "agreement": counts.agreement,
        }


def interleave(
    runs: Mapping[str, Callable[[], Run]],
    repetitions: int,
    budget_s: float = float("inf"),
    clock: Clock = time.perf_counter,
    after_round: Callable[[], None] | None = None,
) -> dict[str, Speed]:
    """Call each (warm) in turn, again and again, so that drift of the machine affects all of them.

    At most `repetitions` rounds, one at least; none is begun that would end after `budget_s` seconds. `after_round` is
    for what is measured in between, `clock` for tests.
    """
    speeds = {name: Speed() for name in runs}
    begin = clock()
    for _ in range(repetitions):
        round_begin = clock()
        for name, run in runs.items():
            speeds[name].runs.append(run())
        if after_round is not None:
            after_round()
        now = clock()
        if now - begin + (now - round_begin) > budget_s:
            break
    return speeds


def measure_speed(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    strategies: Sequence[Strategy],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    repetitions: int = 5,
    budget_s: float = float("inf"),
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> dict[str, Speed]:
    """Decode every prompt, one at a time, with each strategy in turn, after a warm-up; `interleave` has the limits.

    Nothing stops a text, so all strategies write `max_new_tokens`. The result is ordered by the strategies' names.
    """
    runs: dict[str, Callable[[], Run]] = {}
    begin = clock()
    for strategy in strategies:
        decode(decoder, prompts[:1], strategy, min(max_new_tokens, 8), sampling, seed, clock=clock)  # warm-up
        runs[strategy.name] = partial(decode, decoder, prompts, strategy, max_new_tokens, sampling, seed, clock=clock)
    return interleave(runs, repetitions, budget_s - (clock() - begin), clock)


def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    batch: int = 1,
    clock: Clock = time.perf_counter,
    stop_tokens: Sequence[int] = (),
) -> Run:
    device = decoder.model.device
    run = Run()
    batches = [prompts[begin : begin + batch] for begin in range(0, len(prompts), batch)]
    for number, rows in enumerate(batches):
        sampler = Sampler.seeded(sampling or SamplingConfig(), len(rows), seed + number * batch, device)
        texts: list[list[int]] = [[] for _ in rows]
        drafted: list[list[bool]] = [[] for _ in rows]
        counts = Counts()
        synchronise(device)
        begin = clock()
        stream = decoder.stream(rows, strategy, max_new_tokens, sampler, stop_tokens, counts)
        # After the prefill every row hands out its first tokens.
        first = list(itertools.islice(stream, len(rows)))
        synchronise(device)
        middle = clock()
        for row, tokens, marks in itertools.chain(first, stream):
            texts[row] += tokens
            drafted[row] += marks
        synchronise(device)
        run.num_timed += sum(map(len, texts)) - sum(len(emitted.tokens) for emitted in first)
        run.seconds += clock() - middle
        run.first_token_s += (middle - begin) / len(batches)
        run.num_passes += counts.num_backbone_passes - 1
        run.counts += counts
        run.texts += texts
        run.drafted += drafted
    return run
