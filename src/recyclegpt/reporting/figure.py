"""What a figure shows, independent of how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

# Okabe and Ito's palette, distinguishable with colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5F3F", "#333333")
Marker = Literal["circle", "square", "diamond"]


@dataclass
class Series:
    """Points of one kind."""

    label: str | None
    """In the legend; None: not in it."""
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    """Standard deviation of each y."""
    error_x: Sequence[float] | None = None
    notes: Sequence[str] | None = None
    """Shown when hovering over each point."""
    style: Literal["line", "points", "both", "faint", "dashed"] = "both"
    colour: str = PALETTE[0]
    marker: Marker = "circle"


@dataclass
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    ticks: Mapping[float, str] | None = None
    """Places on the x axis and their names; None: chosen when drawn."""


@dataclass
class Figure:
    """A row of panels, those without points left out; `name` is that of its file."""

    name: str
    title: str
    panels: list[Panel]

    def __post_init__(self) -> None:
        self.panels = [panel for panel in self.panels if any(len(series.x) for series in panel.series)]
