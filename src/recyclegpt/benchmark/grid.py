"""The speed benchmark: a grid of decoders, shapes and lengths, each with the ceiling that arithmetic sets it.

Rates are compared within one group of interleaved measurements only, with autoregressive decoding of that group.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from recyclegpt.benchmark import transformers_baseline
from recyclegpt.benchmark.ceilings import PassCosts, PassTimer, backbone_bytes, byte_ceiling, module_bytes
from recyclegpt.benchmark.simulated_acceptance import SimulatedAcceptance
from recyclegpt.benchmark.speed import Run, Speed, decode, interleave
from recyclegpt.decoding import Autoregressive, Decoder, Strategy, make_strategy
from recyclegpt.hardware.memory import PeakMemory
from recyclegpt.hardware.stopwatch import CopyTimer
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
    batch: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (64,)
    new_tokens: tuple[int, ...] = (128,)
    acceptance: tuple[float, ...] | None = None
    num_prompts: int = 2
    repetitions: int = 5
    baselines: tuple[str, ...] = ()
    seed: int = 1
    dtype_name: str = "bfloat16"
    """Name for the rows: with int8 weights the model's states have another dtype."""

    def decoders(self, has_module: bool) -> list[Strategy]:
        """All that draft, by this model: alternating decoding with the module, verified decoding with each drafter."""
        made = [
            make_strategy(name, m, drafter=drafter)
            for m in self.num_recycled
            for name in self.strategies
            if name != "autoregressive"
            for drafter in (self.drafters if name == "verified" else ("module",))
        ]
        return [strategy for strategy in made if has_module or not strategy.needs_module]


def bench(
    decoder: Decoder,
    config: BenchConfig,
    prompts: Callable[[int, int], list[list[int]]],
    plain: RecycleGPT | None = None,
) -> Iterator[list[Row]]:
    """Measure every combination of batch and lengths; yield the rows of each as they are done.

    `prompts` gives (number, length) prompts; `plain` is the model before it was fused, for baselines.
    """
    for batch, prompt_tokens, new_tokens in itertools.product(config.batch, config.prompt_tokens, config.new_tokens):
        rows = prompts(batch * config.num_prompts, prompt_tokens)
        yield _Group(decoder, config, batch, prompt_tokens, new_tokens, rows).measure(plain)


@dataclass
class _Group:
    """One batch size and one pair of lengths: all that is interleaved and compared."""

    decoder: Decoder
    config: BenchConfig
    batch: int
    prompt_tokens: int
    new_tokens: int
    prompts: list[list[int]]

    def measure(self, plain: RecycleGPT | None) -> list[Row]:
        strategies = self._strategies()
        self.decoder.max_idle = len(strategies)
        runs: dict[str, Callable[[], Run]] = {
            name: partial(
                decode, self.decoder, self.prompts, strategy, self.new_tokens, seed=self.config.seed, batch=self.batch
            )
            for name, strategy in strategies.items()
        }
        memory = self._peaks(runs)
        outside: dict[str, Callable[[], Run]] = {}
        if plain is not None and "transformers" in self.config.baselines:
            # Made after the peaks of the decoders here have been taken.
            outside = transformers_baseline.make_runs(plain, self.prompts, self.new_tokens, self.batch)
            memory |= self._peaks(outside)
        if self.decoder.use_graphs:
            # Twice: a shape that a single step met is captured when it is met again.
            for run in [*runs.values()] * 2:
                run()
        timers = self._timers()
        copies = CopyTimer(self.decoder.model.device)

        def measure_meanwhile() -> None:
            copies.measure(ROUNDS_PER_REPETITION)
            for timer in timers.values():
                timer.measure(ROUNDS_PER_REPETITION)

        speeds = interleave(runs | outside, self.config.repetitions, after_round=measure_meanwhile)
        costs = {m: timer.costs() for m, timer in timers.items()}
        baseline = speeds["autoregressive"]
        rows = [
            self._row(strategy, speeds[name], baseline, costs.get(strategy.num_recycled), copies.bytes_per_s)
            | {"peak_memory_bytes": memory[name]}
            for name, strategy in strategies.items()
        ]
        if outside:
            rows.append(self._outside_row({name: speeds[name] for name in outside}, baseline, memory))
        return rows

    def _peaks(self, runs: dict[str, Callable[[], Run]]) -> dict[str, float]:
        """Peak bytes of each run, which also warms it up: it is as long as the timed ones, so all shapes occur."""
        memory = {}
        for name, run in runs.items():
            self.decoder.forget()  # idle sessions of other strategies are not this one's memory
            with PeakMemory(self.decoder.model.device) as peak:
                run()
            memory[name] = peak.bytes
        return memory

    def _strategies(self) -> dict[str, Strategy]:
        """By unique names, the baseline first; without a module only what needs none."""
        made: dict[str, Strategy] = {"autoregressive": Autoregressive()}
        for strategy in self.config.decoders(self.decoder.model.recyclable is not None):
            if strategy.name == "verified" and strategy.needs_module and self.config.acceptance is not None:
                for share in self.config.acceptance:
                    made[f"{strategy.label} at {share}"] = SimulatedAcceptance(
                        strategy.num_recycled, drafter=strategy.drafter, probability=share
                    )
            else:
                made[strategy.label] = strategy
        return made

    def _timers(self) -> dict[int, PassTimer]:
        if self.decoder.model.recyclable is None:
            return {}
        middle = self.prompt_tokens + self.new_tokens // 2
        return {m: PassTimer(self.decoder, m, middle, self.batch) for m in self.config.num_recycled}

    def _row(
        self, strategy: Strategy, speed: Speed, baseline: Speed, costs: PassCosts | None, copy_bytes_per_s: float
    ) -> Row:
        model, m, counts = self.decoder.model, strategy.num_recycled, speed.counts
        share = counts.acceptance or 0.0
        row = self._common(strategy.name, m, self.decoder.compiled, speed, baseline)
        row["drafter"] = strategy.drafter if m else None
        if costs is not None and strategy.drafter == "module":
            row |= {name: getattr(costs, name) for name in COSTS}
            row |= {"ceiling_measured": costs.ceiling(share), "ceiling_bytes": byte_ceiling(model, m, share)}
        # A step reads the backbone once and the module m times: once for the true pairs, then once per further token.
        step_bytes = backbone_bytes(model) + (m * module_bytes(model) if strategy.needs_module else 0)
        return row | {
            "acceptance": counts.acceptance,
            "mean_accepted_length": counts.mean_accepted_length,
            "agreement": counts.agreement,
            "acceptance_given": isinstance(strategy, SimulatedAcceptance),
            "bandwidth_utilisation": speed.passes_per_s * step_bytes / copy_bytes_per_s,
            "copy_bytes_per_s": copy_bytes_per_s,
        }

    def _outside_row(self, speeds: dict[str, Speed], baseline: Speed, memory: dict[str, float]) -> Row:
        """The fastest of its settings counts; the others are named in `tokens_per_s_by_cache`."""
        best = max(speeds, key=lambda name: speeds[name].tokens_per_s)
        return self._common("transformers", 0, best == "static compiled", speeds[best], baseline) | {
            "acceptance": None,
            "mean_accepted_length": None,
            "cache": best,
            "tokens_per_s_by_cache": {name: speed.tokens_per_s for name, speed in speeds.items()},
            "peak_memory_bytes": memory[best],
        }

    def _common(self, strategy: str, num_recycled: int, compiled: bool, speed: Speed, baseline: Speed) -> Row:
        first_token_s = statistics.median(run.first_token_s for run in speed.runs)
        return dict.fromkeys((*COSTS, "ceiling_measured", "ceiling_bytes")) | {
            "batch": self.batch,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "recycle_num_layers": self.decoder.model.recycle_config.num_layers,
            "dtype": self.config.dtype_name,
            "compile": compiled,
            "strategy": strategy,
            "num_recycled": num_recycled,
            **speed.rates(baseline),
            "time_to_first_token_s": first_token_s,
        }
