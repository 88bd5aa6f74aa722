"""A run as read from its folder, and the runs of a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recyclegpt.reporting.plain_values import Plain

COMPLETED = "completed"
FAILED = "failed"
UNFINISHED = "unfinished"
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Problem:
    """A file that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Job:
    """A job that was asked for."""

    overrides: tuple[str, ...]
    control: str | None
    folder: Path
    """Of the sweep."""


@dataclass
class Run:
    """One run folder.

    `settings` are the config's leaves under dotted keys, less seed, names and paths. `metrics` has the tags of
    `result.json`: perplexities, shares (0 to 1), tokens/s, ratios; None where there is no value. Where `contended`,
    speeds are None.
    """

    folder: Path
    status: str = UNFINISHED
    error: str | None = None
    control: str | None = None
    seed: int | None = None
    settings: dict[str, Plain] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    train: dict[str, float | None] = field(default_factory=dict)
    hardware: dict[str, Plain] = field(default_factory=dict)
    model: dict[str, float | None] = field(default_factory=dict)
    config_hash: str | None = None
    config_read: bool = False
    """Whether `settings` are those of the whole config, and not of the overrides alone."""
    overrides: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    bench: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `bench.json`; empty: no such file, or contended."""
    bench_hardware: dict[str, Any] = field(default_factory=dict)
    """What those rows were measured on."""
    contended: bool = False
    """Other programs used the processors while speeds were measured."""

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def completed(self) -> bool:
        return self.status == COMPLETED

    @property
    def has_module(self) -> bool:
        """Whether there is a recyclable module."""
        size = self.model.get("num_parameters_recycle")
        return bool(size) if size is not None else self.settings.get("recycle.num_layers") != 0

    def value(self, name: str) -> float | None:
        """A metric by its tag, or a number of another section: `train.tokens`, `model.num_parameters`."""
        section, dot, rest = name.partition(".")
        if dot and section in ("train", "model"):
            values = self.train if section == "train" else self.model
            return values.get(rest)
        return self.metrics.get(name)


class Runs(list[Run]):
    """The runs of a report, in order of their folders."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[Job] = []
        """Jobs of a sweep that have no folder."""
        self.problems: list[Problem] = []
        """Files that could not be used."""

    def of_status(self, status: str) -> list[Run]:
        """Runs with this status."""
        return [run for run in self if run.status == status]
