"""A set of prompts by category, read from JSON Lines as Spec-Bench writes them, and how the decoders do on it."""

from __future__ import annotations

import json
import logging
import operator
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from recyclegpt.benchmark.speed import Speed, decode, interleave
from recyclegpt.decoding import Autoregressive, Decoder, SamplingConfig, Strategy
from recyclegpt.errors import ConfigError

log = logging.getLogger("recyclegpt")

OVERALL = "overall"
Row = dict[str, Any]


class Prompt(NamedTuple):
    """One line of the file."""

    category: str
    text: str


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file of lines `{"category": "...", "prompt": "..."}`, or Spec-Bench's own with `turns`.

    Of several turns the first is decoded: those after it answer a text that another model wrote.

    Raises:
        ConfigError: the file cannot be read or holds nothing, or a line is something else; naming the first.
    """
    path = Path(path).expanduser()
    try:
        # Not `splitlines`: U+2028 and its like may stand in a JSON string as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts: {path} cannot be read as UTF-8 text ({error})") from error
    prompts: list[Prompt] = []
    num_longer = 0
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                prompt, has_more_turns = _prompt(line)
            except ValueError as error:
                raise ConfigError(f"prompts: {path}:{number}: {error}") from error
            prompts.append(prompt)
            num_longer += has_more_turns
    if not prompts:
        raise ConfigError(f'prompts: {path} is empty; give a line {{"category": "...", "prompt": "..."}} for each')
    if num_longer:
        log.warning("%d of %d prompts have several turns; the first of each is decoded", num_longer, len(prompts))
    return prompts


def _prompt(line: str) -> tuple[Prompt, bool]:
    """The prompt of a line, and whether turns come after it. ValueError says what is wrong with the line."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if isinstance(found, dict):
        category, turns = found.get("category"), found.get("turns") or [found.get("prompt")]
        if category == OVERALL:
            raise ValueError(f"its category is {OVERALL!r}, which is the name of the last row; choose another")
        if (
            category
            and isinstance(turns, list)
            and all(value and isinstance(value, str) for value in (category, turns[0]))
        ):
            return Prompt(category, turns[0]), len(turns) > 1
    raise ValueError("lacks a category, or a prompt (or turns that begin with one): strings that are not empty")


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
    seed: int = 0,
) -> list[Row]:
    """Decode every prompt (token ids by category) greedily with every strategy; rows by category, then `overall`.

    Strategies, to which the baseline is added, and categories take turns within a repetition, after a warm-up, so that
    drift of the machine affects all. Nothing stops a text: each has `new_tokens` tokens, and rates compare like with
    like.
    """
    named = {f"{strategy.name} {strategy.num_recycled}": strategy for strategy in [Autoregressive(), *strategies]}
    runs = {
        f"{number} {name}": partial(decode, decoder, rows, strategy, new_tokens, SamplingConfig(), seed)
        for number, rows in enumerate(prompts.values())
        for name, strategy in named.items()
    }
    texts = sorted((row for rows in prompts.values() for row in rows), key=len)
    if decoder.use_graphs:
        # Caches come in few lengths, and each shape is captured when it is met for the second time.
        decoder.max_idle = len(texts) * len(named)
        for strategy in named.values():
            decode(decoder, texts * 3, strategy, new_tokens)
    for strategy in named.values():  # a warm-up, in the longest cache
        decode(decoder, texts[-1:], strategy, new_tokens)
    speeds = interleave(runs, repetitions)
    found = {category: {name: speeds[f"{number} {name}"] for name in named} for number, category in enumerate(prompts)}
    found[OVERALL] = {name: _together([of[name] for of in found.values()]) for name in named}
    return [
        _row(category, named[name], speed, of["autoregressive 0"])
        for category, of in found.items()
        for name, speed in of.items()
    ]


def _together(speeds: Sequence[Speed]) -> Speed:
    """All categories as one: tokens and seconds are added up within each repetition."""
    return Speed([sum(runs[1:], runs[0]) for runs in zip(*(speed.runs for speed in speeds), strict=True)])


def _row(category: str, strategy: Strategy, speed: Speed, baseline: Speed) -> Row:
    counts = speed.counts
    return {
        "category": category,
        "strategy": strategy.name,
        "num_recycled": strategy.num_recycled,
        "num_prompts": len(speed.texts),
        **speed.rates(baseline),
        "mean_accepted_length": counts.mean_accepted_length,
        "acceptance": counts.acceptance,
        "agreement": counts.agreement,
        "equal": statistics.mean(map(operator.eq, speed.texts, baseline.texts)),
    }
