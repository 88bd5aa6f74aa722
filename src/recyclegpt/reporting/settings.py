"""Runs that differ only in the seed, taken together: means, and the spread between seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recyclegpt.reporting.run_folders import COMPLETED, Plain, Run, number

SHORT = {
    "recycle.num_layers": "depth",
    "model.num_layers": "layers",
    "loss.recycle_weight": "weight",
    "loss.recycle_schedule": "schedule",
    "loss.num_unrolled": "unrolled",
    "decoding.num_recycled": "recycled",
}


@dataclass(frozen=True)
class Setting:
    """One combination of the swept settings, and its complete runs, one a seed."""

    values: dict[str, Plain]
    """Of the swept keys; of a control, what makes it one."""
    control: str | None
    """Name of the control: a model without a module. None: the module is there."""
    runs: list[Run]

    @property
    def label(self) -> str:
        """In words: `depth 2, weight 0.3`, or the control's name."""
        shown = {key: value for key, value in self.values.items() if not self.control or key != "model.num_layers"}
        words = [self.control.replace("_", " ")] if self.control else []
        return ", ".join(words + [f"{SHORT.get(key, key)} {value}" for key, value in shown.items()]) or "all runs"

    def numbers(self, metric: str) -> list[float]:
        return [value for run in self.runs if (value := run.metrics.get(metric)) is not None]

    def mean(self, metric: str) -> float | None:
        """Mean over seeds; None where no run has a value."""
        numbers = self.numbers(metric)
        return statistics.fmean(numbers) if numbers else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation over seeds; None of fewer than two."""
        numbers = self.numbers(metric)
        return statistics.stdev(numbers) if len(numbers) > 1 else None


def swept_keys(runs: Iterable[Run], has_module: bool = True) -> list[str]:
    """Full names of the settings in which runs with (or without) a module differ, in order of the config."""
    seen: dict[str, set[Plain]] = defaultdict(set)
    for run in runs:
        for key, value in run.settings.items() if run.has_module == has_module else ():
            seen[key].add(value)
    return [key for key, values in seen.items() if len(values) > 1]


def summarise(runs: Sequence[Run]) -> list[Setting]:
    """Complete runs by their setting, those with a module first; of several with the same seed the first counts."""
    complete = [run for run in runs if run.status == COMPLETED and run.settings]
    keys = swept_keys(runs)
    # Without a module its settings mean nothing.
    control_keys = [k for k in swept_keys(complete, False) if k.partition(".")[0] not in ("recycle", "loss", "model")]
    control_keys.insert(0, "model.num_layers")
    groups: dict[tuple[str | None, tuple[tuple[str, Plain], ...]], dict[int | None, Run]] = defaultdict(dict)
    for run in complete:
        # Whatever the sweep calls it, a run with a module is no control.
        control = None if run.has_module else run.control or "no_module"
        values = tuple((key, run.settings.get(key)) for key in (control_keys if control else keys))
        groups[control, values].setdefault(run.seed, run)
    settings = [Setting(dict(values), control, list(members.values())) for (control, values), members in groups.items()]
    return sorted(settings, key=_order)


def _order(setting: Setting) -> tuple[object, ...]:
    values = [(0, value, "") if number(value) is not None else (1, 0, str(value)) for value in setting.values.values()]
    return (setting.control is not None, *values)


def lines_along(settings: Sequence[Setting], key: str) -> list[tuple[str, list[Setting]]]:
    """Settings that differ in `key` alone, each line in order of its number and named by what it keeps fixed.

    Settings without a module, and values that are no numbers, belong to no line; nor does a single point.
    """
    groups: dict[str, list[Setting]] = defaultdict(list)
    for setting in settings:
        if setting.control is None and number(setting.values.get(key)) is not None:
            groups[", ".join(f"{SHORT.get(k, k)} {v}" for k, v in setting.values.items() if k != key)].append(setting)
    return [
        (fixed, sorted(members, key=lambda setting: float(setting.values[key] or 0)))
        for fixed, members in groups.items()
        if len(members) > 1
    ]


def pooled_spread(settings: Iterable[Setting], metric: str) -> float | None:
    """Standard deviation between seeds, pooled over all settings with at least two of them."""
    samples = [numbers for setting in settings if len(numbers := setting.numbers(metric)) > 1]
    squares = sum(statistics.variance(numbers) * (len(numbers) - 1) for numbers in samples)
    return math.sqrt(squares / sum(len(numbers) - 1 for numbers in samples)) if samples else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats: more of the first number (speedup), less of the second (perplexity).

    In order of rising speedup. Of equal points all are on the front.
    """
    front = [
        i
        for i, (x, y) in enumerate(points)
        if not any(other_x >= x and other_y <= y and (other_x, other_y) != (x, y) for other_x, other_y in points)
    ]
    return sorted(front, key=lambda i: points[i])
