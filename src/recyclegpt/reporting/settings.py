"""Runs that differ only in the seed, taken together: means, and the spread between seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recyclegpt.reporting.plain_values import Plain
from recyclegpt.reporting.runs import Run

FOLLOWS = ("data.seed", "callbacks.decoding_monitor.seed")
"""Settings that only repeat another one in older configs."""
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
        if self.control is not None:
            others = [
                f"{SHORT.get(key, key)} {value}" for key, value in self.values.items() if key != "model.num_layers"
            ]
            return ", ".join([self.control.replace("_", " "), *others])
        return ", ".join(f"{SHORT.get(key, key)} {value}" for key, value in self.values.items()) or "all runs"

    def numbers(self, name: str) -> list[float]:
        """A metric of every run that has it (`Run.value`)."""
        return [value for run in self.runs if (value := run.value(name)) is not None]

    def mean(self, name: str) -> float | None:
        """Mean over seeds; None where no run has a value."""
        numbers = self.numbers(name)
        return statistics.fmean(numbers) if numbers else None

    def spread(self, name: str) -> float | None:
        """Sample standard deviation over seeds; None of fewer than two."""
        numbers = self.numbers(name)
        return statistics.stdev(numbers) if len(numbers) > 1 else None


def control_name(run: Run) -> str | None:
    """Name of a run without a module; None for a run that has one, whatever the sweep calls it."""
    if run.has_module:
        return None
    return run.control or "no_module"


def swept_keys(runs: Iterable[Run]) -> list[str]:
    """Full names of the settings in which runs with a module differ, in order of the config; without the seed."""
    return _differing([run for run in runs if run.has_module])


def _differing(runs: Iterable[Run]) -> list[str]:
    seen: dict[str, set[Plain]] = defaultdict(set)
    for run in runs:
        if run.config_read:
            for key, value in run.settings.items():
                seen[key].add(value)
    return [key for key, values in seen.items() if len(values) > 1 and key not in FOLLOWS]


def summarise(runs: Sequence[Run]) -> list[Setting]:
    """The complete runs by setting: those with a module in order of their values, then the controls.

    Of runs with the same setting and seed the first counts (`repeated` names the others); a run whose config cannot be
    read belongs to no setting.
    """
    known = [run for run in runs if run.completed and run.config_read]
    keys = swept_keys(runs)
    plain_keys = _differing([run for run in known if not run.has_module])
    # Without a module its settings mean nothing.
    plain_keys = [
        "model.num_layers",
        *(k for k in plain_keys if k.partition(".")[0] not in ("recycle", "loss", "model")),
    ]
    groups: dict[tuple[str | None, tuple[tuple[str, Plain], ...]], dict[int | None, Run]] = defaultdict(dict)
    for run in known:
        control = control_name(run)
        values = tuple((key, run.settings.get(key)) for key in (keys if control is None else plain_keys))
        groups[control, values].setdefault(run.seed, run)
    settings = [Setting(dict(values), control, list(members.values())) for (control, values), members in groups.items()]
    return sorted(settings, key=_order)


def repeated(runs: Sequence[Run], settings: Sequence[Setting]) -> list[Run]:
    """Complete runs that no setting counts, because another of the same setting and seed came first."""
    counted = {id(run) for setting in settings for run in setting.runs}
    return [run for run in runs if run.completed and run.config_read and id(run) not in counted]


def lines_along(settings: Sequence[Setting], key: str) -> list[tuple[str, list[Setting]]]:
    """Settings that differ in `key` alone, each line in order of its number and named by what it keeps fixed.

    Settings without a module, and values that are no numbers, belong to no line; nor does a single point.
    """
    groups: dict[str, list[Setting]] = defaultdict(list)
    for setting in settings:
        value = setting.values.get(key)
        if setting.control is None and isinstance(value, (int, float)) and not isinstance(value, bool):
            rest = ", ".join(f"{SHORT.get(k, k)} {v}" for k, v in setting.values.items() if k != key)
            groups[rest].append(setting)
    return [
        (rest, sorted(members, key=lambda setting: float(str(setting.values[key]))))
        for rest, members in groups.items()
        if len(members) > 1
    ]


def pooled_spread(settings: Iterable[Setting], name: str) -> float | None:
    """Standard deviation between seeds, pooled over all settings with at least two of them."""
    squares, freedom = 0.0, 0
    for setting in settings:
        numbers = setting.numbers(name)
        if len(numbers) > 1:
            squares += statistics.variance(numbers) * (len(numbers) - 1)
            freedom += len(numbers) - 1
    return math.sqrt(squares / freedom) if freedom else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats: more of the first number (speedup), less of the second (perplexity).

    In order of rising speedup. Of equal points all are on the front.
    """
    return sorted(
        (
            i
            for i, (x, y) in enumerate(points)
            if not any(other_x >= x and other_y <= y and (other_x, other_y) != (x, y) for other_x, other_y in points)
        ),
        key=lambda i: points[i],
    )


def _order(setting: Setting) -> tuple[object, ...]:
    def comparable(value: Plain) -> tuple[int, float, str]:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return 0, float(value), ""
        return 1, 0.0, str(value)

    return (setting.control is not None, *(comparable(value) for value in setting.values.values()))
