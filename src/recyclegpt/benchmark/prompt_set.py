"""How decoders do on a set of prompts, by category. They take turns at each prompt, so that ratios are of pairs."""

from __future__ import annotations

import json
import logging
import operator
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from recyclegpt.benchmark.speed import Run, Speed, decode
from recyclegpt.data.prompts import OVERALL
from recyclegpt.decoding import Autoregressive, Counts, Decoder, SamplingConfig, Strategy
from recyclegpt.errors import ConfigError

log = logging.getLogger("recyclegpt")

VARIED = f"{OVERALL}, varied texts"
"""Category of the prompts after which the backbone alone does not repeat itself."""
REPETITIVE = 0.3
"""A text repeats itself if a larger share of its 4-grams stood in it before: seq-rep-4 of Welleck et al., arXiv
1908.04319. The limit is ours."""
RESAMPLES = 1000
Row = dict[str, Any]
Prompts = Mapping[str, Sequence[list[int]]]
"""Token ids by category."""


@dataclass(frozen=True)
class Contender:
    """A decoder and how it decodes."""

    decoder: Decoder
    strategy: Strategy
    about: Row
    """What its rows say besides: `dtype`, which it has in common with its baseline, and whatever else varies."""


@dataclass(frozen=True)
class Texts:
    """How the texts are written."""

    new_tokens: int
    stop_tokens: Sequence[int] = ()
    """A text ends with the first of these; without them all are equally long."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch: int = 1
    """Prompts of a category that are decoded together."""
    repetitions: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """One batch of prompts, decoded by all contenders in turn."""

    repetition: int
    category: str
    runs: list[Run]

    @classmethod
    def from_json(cls, values: Row) -> Round:
        return cls(values["repetition"], values["category"], [_run(run) for run in values["runs"]])

    def to_json(self) -> Row:
        kept = [{key: value for key, value in vars(run).items() if key != "drafted"} for run in self.runs]
        return vars(self) | {"runs": [run | {"counts": vars(run["counts"])} for run in kept]}


def _run(values: Row) -> Run:
    counts: Row = {
        name: Counter({int(place): number for place, number in value.items()}) if isinstance(value, dict) else value
        for name, value in values["counts"].items()
    }
    given: Row = values | {"counts": Counts(**counts)}
    return Run(**given)


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


def decode_rounds(
    contenders: Sequence[Contender], prompts: Prompts, texts: Texts, file: Path, header: Row
) -> list[Round]:
    """Decode every prompt with every contender after a warm-up, `texts.repetitions` times.

    `file` gets a line of JSON a round, after one of `header`: what was measured survives the process, and the same
    call continues it.

    Raises:
        ConfigError: the file holds rounds under another header.
    """
    rounds = [Round.from_json(values) for values in _continued(file, header)]
    units = list(_units(prompts, texts))[len(rounds) :]
    if units:
        _warm_up(contenders, prompts, texts)
    with file.open("a", encoding="utf-8") as opened:
        for repetition, category, first, rows in tqdm(units, desc="decoding", unit=" batches", mininterval=1):
            how = texts.sampling, texts.seed + first, texts.batch
            runs = [
                decode(one.decoder, rows, one.strategy, texts.new_tokens, *how, stop_tokens=texts.stop_tokens)
                for one in contenders
            ]
            rounds.append(Round(repetition, category, runs))
            opened.write(json.dumps(rounds[-1].to_json()) + "\n")
            opened.flush()
    return rounds


def _units(prompts: Prompts, texts: Texts) -> Iterator[tuple[int, str, int, Sequence[list[int]]]]:
    for repetition in range(texts.repetitions):
        first = 0
        for category, rows in prompts.items():
            for begin in range(0, len(rows), texts.batch):
                yield repetition, category, first + begin, rows[begin : begin + texts.batch]
            first += len(rows)


def _continued(file: Path, header: Row) -> list[Row]:
    """The whole lines of an earlier call, less its header; the file begins with this header afterwards."""
    header = json.loads(json.dumps(header))
    found = file.read_text(encoding="utf-8") if file.exists() else ""
    whole = found[: found.rfind("\n") + 1]
    first, *lines = map(json.loads, whole.splitlines()) if whole else [header]
    if first != header:
        changed = ", ".join(key for key in {**first, **header} if first.get(key) != header.get(key))
        raise ConfigError(f"output_dir: {file} holds a measurement of another {changed}; choose another folder")
    file.write_text(whole or json.dumps(header) + "\n", encoding="utf-8")
    return lines


def _warm_up(contenders: Sequence[Contender], prompts: Prompts, texts: Texts) -> None:
    ordered = sorted((row for rows in prompts.values() for row in rows), key=len)
    for one in contenders:
        longest = ordered[-texts.batch :]
        if one.decoder.use_graphs:
            # Caches come in few lengths, and each shape is captured when it is met for the second time.
            one.decoder.max_idle, longest = len(ordered) * len(contenders), ordered * 3
        decode(one.decoder, longest, one.strategy, texts.new_tokens, texts.sampling, batch=texts.batch)


def prompt_rows(contenders: Sequence[Contender], rounds: Sequence[Round]) -> list[Row]:
    """What the rounds say of each contender: rows by category, then `OVERALL`, then `VARIED`.

    The baseline of a contender is autoregressive decoding in its dtype.
    """
    rows = []
    for category in [*dict.fromkeys(one.category for one in rounds), OVERALL, VARIED]:
        for number, one in enumerate(contenders):
            base = next(
                place
                for place, other in enumerate(contenders)
                if other.strategy == Autoregressive() and other.about["dtype"] == one.about["dtype"]
            )
            pairs = [
                (it.repetition, it.runs[number], it.runs[base])
                for it in rounds
                if category == it.category or (category == OVERALL)
                or (category == VARIED and not any(map(_repeats, it.runs[base].texts)))
            ]  # fmt: skip
            if pairs:
                rows.append({"category": category, **one.about, **_row(one.strategy, pairs)})
    return rows


def _row(strategy: Strategy, pairs: Sequence[tuple[int, Run, Run]]) -> Row:
    """A contender and its baseline on the same prompts, by repetition."""
    mine, base = Speed(), Speed()
    for repetition in range(1 + max(number for number, *_ in pairs)):
        of_each = zip(*(both for number, *both in pairs if number == repetition), strict=True)
        for speed, runs in zip((mine, base), of_each, strict=True):
            speed.runs.append(sum(runs[1:], runs[0]))
    return {
        **mine.row(strategy, base),
        "speedup_interval": _interval([both for _, *both in pairs]),
        "num_prompts": len(mine.texts),
        "equal": statistics.mean(map(operator.eq, mine.texts, base.texts)),
        "repetitive": statistics.mean(map(_repeats, mine.texts)),
    }


def _interval(pairs: Sequence[Sequence[Run]]) -> list[float]:
    """Of the speedup: 95% by a bootstrap over prompts."""
    numbers = [[run.num_timed, run.seconds] for both in pairs for run in both]
    numbers_N4 = torch.tensor(numbers, dtype=torch.float64).view(-1, 4)
    draws = torch.randint(len(numbers_N4), (RESAMPLES, len(numbers_N4)), generator=torch.Generator().manual_seed(0))
    tokens, seconds, base_tokens, base_seconds = numbers_N4[draws].sum(dim=1).unbind(dim=1)
    ratios = (tokens / seconds) / (base_tokens / base_seconds)
    return ratios.quantile(torch.tensor([0.025, 0.975]).double()).tolist()


def _repeats(text: Sequence[int]) -> bool:
    grams = [*zip(text, text[1:], text[2:], text[3:], strict=False)]
    return len(grams) - len({*grams}) > REPETITIVE * len(grams)
