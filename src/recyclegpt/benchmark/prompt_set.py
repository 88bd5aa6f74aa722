"""How the decoders do on a set of prompts, by category."""

from __future__ import annotations

import logging
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recyclegpt.benchmark.speed import Run, Speed, decode
from recyclegpt.decoding import Autoregressive, Decoder, Strategy
from recyclegpt.errors import ConfigError

log = logging.getLogger("recyclegpt")

OVERALL = "overall"
Row = dict[str, Any]


def fit_prompts(rows: Sequence[Sequence[int]], context: int, new_tokens: int, start: int) -> list[list[int]]:
    """Token ids with room for the text after them: one that is too long keeps its end, and a warning counts them.

    Raises:
        ConfigError: the new tokens leave no room for a prompt.
    """
    room = context - new_tokens
    if room < 1:
        raise ConfigError(
            f"bench.new_tokens: {new_tokens} leave no room for a prompt in the context of {context}; lower them"
        )
    if num_cut := sum(len(row) > room for row in rows):
        log.warning(
            "%d of %d prompts are longer than %d tokens, the room that %d new ones leave in the context; their "
            "beginnings were left out", num_cut, len(rows), room, new_tokens,
        )  # fmt: skip
    return [list(row[-room:]) or [start] for row in rows]


def bench_prompts(
    decoder: Decoder,
    prompts: Mapping[str, list[list[int]]],
    strategies: Sequence[Strategy],
    new_tokens: int,
    repetitions: int,
    after_prompt: Callable[[list[Row]], None] = lambda _: None,
) -> list[Row]:
    """Decode every prompt (token ids by category) greedily with every strategy; rows by category, then `overall`.

    Strategies, to which the baseline is added, take turns at each prompt, after a warm-up, so that drift of the machine
    affects all. Nothing stops a text: each has `new_tokens` tokens, and rates compare like with like. `after_prompt`
    gets the rows of what has been decoded so far.
    """
    named = {strategy.label: strategy for strategy in [Autoregressive(), *strategies]}
    texts = sorted((row for rows in prompts.values() for row in rows), key=len)
    if decoder.use_graphs:
        # Caches come in few lengths, and each shape is captured when it is met for the second time.
        decoder.max_idle = len(texts) * len(named)
        for strategy in named.values():
            decode(decoder, texts * 3, strategy, new_tokens)
    for strategy in named.values():  # a warm-up, in the longest cache
        decode(decoder, texts[-1:], strategy, new_tokens)
    speeds: dict[str, dict[str, Speed]] = {}
    for _ in range(repetitions):
        for category, rows in prompts.items():
            of = speeds.setdefault(category, {name: Speed() for name in named})
            for speed in of.values():
                speed.runs.append(Run())
            for row in rows:
                for name, strategy in named.items():
                    of[name].runs[-1] += decode(decoder, [row], strategy, new_tokens)
                after_prompt(_rows(speeds, named))
    return _rows(speeds, named)


def _rows(speeds: Mapping[str, dict[str, Speed]], named: Mapping[str, Strategy]) -> list[Row]:
    together = {name: _together([of[name] for of in speeds.values()]) for name in named}
    rows = []
    for category, of in {**speeds, OVERALL: together}.items():
        baseline = of[Autoregressive().label]
        for name, speed in of.items():
            row = {"category": category, **speed.row(named[name], baseline), "num_prompts": len(speed.texts)}
            rows.append(row | {"equal": statistics.mean(map(operator.eq, speed.texts, baseline.texts))})
    return rows


def _together(speeds: Sequence[Speed]) -> Speed:
    """All categories as one: tokens and seconds are added up within each repetition that all have begun."""
    return Speed([sum(runs[1:], runs[0]) for runs in zip(*(speed.runs for speed in speeds), strict=False)])
