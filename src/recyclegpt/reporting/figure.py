"""What a figure shows, without saying how it is drawn: one description for pictures and for interactive pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

# Okabe and Ito's palette: told apart also by people who see fewer colours.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5F3F", "#333333")

Style = Literal["line", "points", "both", "faint", "dashed"]


@dataclass
class Series:
    """Points of one kind."""

    label: str | None
    """In the legend; None: not in it."""
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None] | None = None
    """Standard deviation of each y."""
    error_x: Sequence[float | None] | None = None
    notes: Sequence[str] | None = None
    """What hovering over each point says."""
    style: Style = "both"
    colour: str = PALETTE[0]
    marker: Literal["circle", "square", "diamond", "triangle"] = "circle"


@dataclass
class Level:
    """A horizontal line, with a band of its spread."""

    label: str
    y: float
    error: float | None
    colour: str


@dataclass
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    ticks: list[float] | None = None
    """Places named on the x axis; None: wherever it seems good."""
    tick_names: Sequence[str] | None = None
    """What stands at the ticks; None: their numbers."""
    log_x: bool = False
    """Equal factors are equal distances."""

    @property
    def empty(self) -> bool:
        return not any(len(series.x) for series in self.series)


@dataclass
class Figure:
    """A row of panels under one name; `name` is that of its file."""

    name: str
    title: str
    panels: list[Panel]

    @property
    def empty(self) -> bool:
        return all(panel.empty for panel in self.panels)
