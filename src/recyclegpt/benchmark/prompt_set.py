"""A set of prompts by category, read from JSON Lines as Spec-Bench writes them, and how the decoders do on it."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recyclegpt.benchmark.speed import Run, Speed, decode, interleave
from recyclegpt.decoding import Autoregressive, Decoder, SamplingConfig, Strategy
from recyclegpt.errors import ConfigError

log = logging.getLogger("recyclegpt")

OVERALL = "overall"
_MOST_NAMED = 12
Row = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One line of the file."""

    category: str
    text: str


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file of lines `{"category": "...", "prompt": "..."}`, or Spec-Bench's own with `turns`.

    Of several turns the first is decoded: those after it answer a text that another model wrote.

    Raises:
        ConfigError: the file cannot be read, holds nothing, or lines of it are something else; naming each line.
    """
    path = Path(path).expanduser()
    try:
        # Not `splitlines`: U+2028 and its like may stand in a JSON string as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts: {path} cannot be read as UTF-8 text ({error})") from error
    prompts: list[Prompt] = []
    problems: list[str] = []
    num_later = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt, later = _prompt(line)
        except ValueError as error:
            problems.append(f"prompts: {path}:{number}: {error}")
        else:
            prompts.append(prompt)
            num_later += later
    if not prompts and not problems:
        problems.append(f'prompts: {path} is empty; give a line {{"category": "...", "prompt": "..."}} for each prompt')
    if len(problems) > _MOST_NAMED:
        problems[_MOST_NAMED:] = [f"prompts: {path}: and {len(problems) - _MOST_NAMED} more lines"]
    if problems:
        raise ConfigError(problems)
    if num_later:
        log.warning("%d of %d prompts have several turns; the first of each is decoded", num_later, len(prompts))
    return prompts


def _prompt(line: str) -> tuple[Prompt, bool]:
    """The prompt of a line, and whether turns come after it. ValueError says what is wrong with the line."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - one kind of error a line
    category, turns = found.get("category"), found.get("turns", [found.get("prompt")])
    if not isinstance(category, str) or not category:
        raise ValueError("has no category, a string that is not empty")
    if category == OVERALL:
        raise ValueError(f"its category is {OVERALL!r}, which is the name of the last row; choose another")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0]:
        raise ValueError("has neither a prompt, a string that is not empty, nor turns that begin with one")
    return Prompt(category, turns[0]), len(turns) > 1


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
    """Decode every prompt greedily with every strategy, one at a time; rows by category, then `overall`.

    Strategies and categories take turns within a repetition, after a warm-up, so that drift of the machine affects all.
    Nothing stops a text: each has `new_tokens` tokens, and rates compare like with like.

    Args:
        decoder: model in the dtype to measure.
        prompts: token ids by category.
        strategies: with different names or numbers of drafted tokens; the baseline is added.
        new_tokens: length of every text.
        repetitions: rounds that are timed.
        seed: of the sampler.
    """
    named = {_name(strategy): strategy for strategy in [Autoregressive(), *strategies]}
    keys = {(category, name): f"{number}" for number, (category, name) in enumerate(_product(prompts, named))}
    runs = {
        key: partial(decode, decoder, prompts[category], named[name], new_tokens, SamplingConfig(), seed)
        for (category, name), key in keys.items()
    }
    texts = sorted((row for rows in prompts.values() for row in rows), key=len)
    if decoder.use_graphs:
        # Caches come in few lengths, and each shape is captured when it is met for the second time.
        decoder.keep_sessions(len(texts) * len(named))
        for strategy in named.values():
            decode(decoder, texts * 3, strategy, new_tokens)
    for strategy in named.values():  # a warm-up, in the longest cache
        decode(decoder, texts[-1:], strategy, new_tokens)
    speeds = interleave(runs, repetitions)
    found = {category: {name: speeds[keys[category, name]] for name in named} for category in prompts}
    found[OVERALL] = {name: _together([of[name] for of in found.values()]) for name in named}
    return [
        _row(category, named[name], speed, of["autoregressive"])
        for category, of in found.items()
        for name, speed in of.items()
    ]


def _product(prompts: Mapping[str, Any], named: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(category, name) for category in prompts for name in named]


def _name(strategy: Strategy) -> str:
    return f"{strategy.name} {strategy.num_recycled}" if strategy.num_recycled else strategy.name


def _together(speeds: Sequence[Speed]) -> Speed:
    """All categories as one: tokens and seconds are added up within each repetition."""
    total = Speed(OVERALL)
    for runs in zip(*(speed.runs for speed in speeds), strict=True):
        total.runs.append(
            Run(
                num_timed=sum(run.num_timed for run in runs),
                seconds=sum(run.seconds for run in runs),
                num_passes=sum(run.num_passes for run in runs),
                counts=sum((run.counts for run in runs[1:]), runs[0].counts),
                texts=[text for run in runs for text in run.texts],
            )
        )
    return total


def _row(category: str, strategy: Strategy, speed: Speed, baseline: Speed) -> Row:
    counts = speed.counts
    ratios = speed.ratios_to(baseline)
    pairs = list(zip(speed.texts, baseline.texts, strict=True))
    return {
        "category": category,
        "strategy": strategy.name,
        "num_recycled": strategy.num_recycled,
        "num_prompts": len(speed.texts),
        "tokens_per_s": speed.tokens_per_s,
        "spread": [min(speed.repetitions), max(speed.repetitions)],
        "speedup": speed.speedup_over(baseline),
        "speedup_spread": [min(ratios), max(ratios)],
        "mean_accepted_length": counts.mean_accepted_length,
        "acceptance": counts.acceptance,
        "agreement": counts.agreement,
        "equal": statistics.mean(mine == theirs for mine, theirs in pairs),
        "common_prefix": statistics.mean(_common_prefix(mine, theirs) for mine, theirs in pairs),
    }


def _common_prefix(mine: Sequence[int], theirs: Sequence[int]) -> int:
    differ = (place for place, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b)
    return next(differ, min(len(mine), len(theirs)))
