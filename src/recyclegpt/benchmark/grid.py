"""The speed benchmark: a grid of decoders, shapes and lengths, each with the ceiling that arithmetic sets it.

Rates are compared within one group of interleaved measurements only, with autoregressive decoding of that group.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from recyclegpt.benchmark import transformers_baseline
from recyclegpt.benchmark.ceilings import PassCosts, PassTimer, backbone_bytes, byte_ceiling, draft_bytes
from recyclegpt.benchmark.simulated_acceptance import SimulatedAcceptance
from recyclegpt.benchmark.speed import Run, Speed, decode, interleave
from recyclegpt.decoding import Autoregressive, Decoder, SamplingConfig, Strategy, make_strategy
from recyclegpt.hardware.measure import CopyTimer, PeakMemory
from recyclegpt.models import RecycleGPT

Row = dict[str, Any]
COSTS = ("verify_cost", "draft_cost", "single_draft_cost")
ROUNDS_PER_REPETITION = 4
"""Rounds of pass and copy timing after each repetition of the decoders."""


@dataclass(frozen=True)
class BenchConfig:
    """What to measure for one model in one number format; conf/bench/grid.yaml says what each setting means."""

    strategies: tuple[str, ...] = ("autoregressive", "alternating", "verified")
    num_recycled: tuple[int, ...] = (1,)
    drafters: tuple[str, ...] = ("module",)
    adaptive: tuple[bool, ...] = (False,)
    batch: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (64,)
    new_tokens: tuple[int, ...] = (128,)
    acceptance_by_position: tuple[float, ...] | None = None
    num_prompts: int | None = None
    repetitions: int = 5
    baselines: tuple[str, ...] = ()
    seed: int = 1

    def decoders(self, has_module: bool) -> list[Strategy]:
        """All that draft, by this model: alternating decoding with the module, verified decoding with each drafter."""
        made = [
            make_strategy(name, m, drafter=drafter, adaptive=adaptive)
            for m in self.num_recycled
            for name in self.strategies
            if name != "autoregressive"
            for drafter in (self.drafters if name == "verified" else ("module",))
            for adaptive in (self.adaptive if name == "verified" and drafter.endswith("module") else (False,))
        ]
        return [strategy for strategy in made if has_module or not strategy.needs_module]

    def simulated(self, strategy: Strategy) -> Strategy:
        """With given acceptance rates, where the settings have some and a module drafts for verified decoding."""
        if self.acceptance_by_position is None or not strategy.needs_module or strategy.name != "verified":
            return strategy
        return SimulatedAcceptance(
            strategy.num_recycled,
            drafter=strategy.drafter,
            adaptive=strategy.adaptive,
            rates=tuple(self.acceptance_by_position),
        )


def bench(
    decoder: Decoder,
    config: BenchConfig,
    prompts: Callable[[int, int], list[list[int]]],
    plain: RecycleGPT | None = None,
    sampling: SamplingConfig | None = None,
) -> Iterator[list[Row]]:
    """Measure every combination of batch and lengths; yield the rows of each as they are done.

    `prompts` gives (number, length) prompts; `plain` is the model before it was fused, for baselines.
    """
    for batch, prompt_tokens, new_tokens in itertools.product(config.batch, config.prompt_tokens, config.new_tokens):
        rows = prompts(batch * (config.num_prompts or 2), prompt_tokens)
        place = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        yield [place | row for row in _group(decoder, config, batch, new_tokens, rows, plain, sampling)]


def _group(
    decoder: Decoder, config: BenchConfig, batch: int, new_tokens: int, prompts: list[list[int]],
    plain: RecycleGPT | None, sampling: SamplingConfig | None,
) -> list[Row]:  # fmt: skip
    """One batch size and one pair of lengths: all that is interleaved and compared."""
    model = decoder.model
    drafting = config.decoders(model.recyclable is not None)
    strategies = {s.label: s for s in [Autoregressive(), *map(config.simulated, drafting)]}
    decoder.max_idle = len(strategies)
    runs: dict[str, Callable[[], Run]] = {
        name: partial(decode, decoder, prompts, strategy, new_tokens, sampling, config.seed, batch)
        for name, strategy in strategies.items()
    }
    memory = _peaks(decoder, runs)
    outside: dict[str, Callable[[], Run]] = {}
    if plain is not None and "transformers" in config.baselines:
        # Made after the peaks of the decoders here have been taken.
        outside = transformers_baseline.make_runs(plain, prompts, new_tokens, batch)
        memory |= _peaks(decoder, outside)
    if decoder.use_graphs:
        # Twice: a shape that a single step met is captured when it is met again.
        for run in [*runs.values()] * 2:
            run()
    middle = len(prompts[0]) + new_tokens // 2
    widths = config.num_recycled if model.recyclable is not None else ()
    timers = {m: PassTimer(decoder, m, middle, batch) for m in widths}
    copies = CopyTimer(model.device)

    def measure_meanwhile() -> None:
        copies.measure(ROUNDS_PER_REPETITION)
        for timer in timers.values():
            timer.measure(ROUNDS_PER_REPETITION)

    speeds = interleave(runs | outside, config.repetitions, after_round=measure_meanwhile)
    baseline = speeds[Autoregressive().label]
    rows = []
    for name, strategy in strategies.items():
        speed, m = speeds[name], strategy.num_recycled
        step_bytes = float(backbone_bytes(model) + (draft_bytes(model, m) if strategy.needs_module else 0))
        if strategy.drafter.startswith(("self_speculative", "early_exit")):
            step_bytes = math.nan  # nobody has counted what parts of the backbone read
        costs = timers[m].costs() if m in timers and strategy.drafter == "module" else None
        rows.append({
            **_common(speed, strategy, baseline, memory[name]),
            **_costs(model, costs, speed.counts.acceptance or 0.0),
            "acceptance_given": isinstance(strategy, SimulatedAcceptance),
            "bandwidth_share": speed.passes_per_s * step_bytes / copies.bytes_per_s,
            "copy_bytes_per_s": copies.bytes_per_s,
        })  # fmt: skip
    if outside:
        # The fastest of its settings counts.
        best = max(outside, key=lambda name: speeds[name].tokens_per_s)
        by_cache = {name: speeds[name].tokens_per_s for name in outside}
        row = {**_common(speeds[best], None, baseline, memory[best]), **_costs(model, None, 0.0), "cache": best}
        rows.append(row | {"tokens_per_s_by_cache": by_cache, "compile": best == "static compiled"})
    return rows


def _peaks(decoder: Decoder, runs: dict[str, Callable[[], Run]]) -> dict[str, float]:
    """Peak bytes of each run, which also warms it up: it is as long as the timed ones, so all shapes occur."""
    memory = {}
    for name, run in runs.items():
        decoder.forget()  # idle sessions of other strategies are not this one's memory
        with PeakMemory(decoder.model.device) as peak:
            run()
        memory[name] = peak.bytes
    return memory


def _common(speed: Speed, strategy: Strategy | None, baseline: Speed, memory: float) -> Row:
    first_token_s = statistics.median(run.first_token_s for run in speed.runs)
    return speed.row(strategy, baseline) | {"time_to_first_token_s": first_token_s, "peak_memory_bytes": memory}


def _costs(model: RecycleGPT, costs: PassCosts | None, acceptance: float) -> Row:
    if costs is None:
        return dict.fromkeys((*COSTS, "ceiling_measured", "ceiling_bytes"))
    return {name: getattr(costs, name) for name in COSTS} | {
        "ceiling_measured": costs.ceiling(acceptance),
        "ceiling_bytes": byte_ceiling(model, costs.num_recycled, acceptance),
    }
