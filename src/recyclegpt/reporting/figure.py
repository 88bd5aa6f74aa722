"""What a figure shows, drawn twice: as PNG by matplotlib, and as an interactive part of a page by plotly."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# Okabe and Ito's palette, distinguishable with colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5F3F", "#333333")
Marker = Literal["circle", "square", "diamond"]
PNG_MARKERS = {"circle": "o", "square": "s", "diamond": "D"}
PNG_LINES = {"dashed": "--", "points": "none"}
HTML_MODES = {"points": "markers", "both": "lines+markers"}


@dataclass
class Series:
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


def draw_canvas(figure: Figure) -> Any:
    """A matplotlib figure of the panels, up to three side by side, each with its legend below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import EngFormatter

    columns = min(3, len(figure.panels))
    lines = -(-len(figure.panels) // columns)
    # Not pyplot: it would choose a screen, and keep every figure.
    width = max(5.2, *(0.75 * len(panel.ticks or ()) for panel in figure.panels))
    canvas = Canvas(figsize=(max(7.2, width * columns), 5.0 * lines), layout="constrained")
    for number, panel in enumerate(figure.panels, start=1):
        axis: Any = canvas.add_subplot(lines, columns, number)
        for series in panel.series:
            axis.errorbar(
                series.x,
                series.y,
                yerr=series.error,
                xerr=series.error_x,
                marker=PNG_MARKERS[series.marker] if series.style in HTML_MODES else None,
                ls=PNG_LINES.get(series.style, "-"),
                color=series.colour,
                label=series.label,
                **({"alpha": 0.15, "lw": 0.8} if series.style == "faint" else {"lw": 1.4}),
                capsize=3,
            )
        axis.set(xlabel=panel.x_label, ylabel=panel.y_label)
        axis.set_title(panel.title, fontsize=10)
        if panel.ticks is not None:
            axis.set_xticks(list(panel.ticks), list(panel.ticks.values()), fontsize=8)
        elif max(x for series in panel.series for x in series.x) >= 10_000:
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.margins(0.08)
        axis.grid(alpha=0.25)
        below = -0.14 - 0.04 * max([name.count("\n") for name in (panel.ticks or {}).values()], default=0)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, below), ncols=2, frameon=False)
    canvas.suptitle(figure.title, fontsize=12)
    return canvas


def draw_png(figure: Figure, path: Path) -> None:
    canvas = draw_canvas(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)


def draw_html(figure: Figure) -> str:
    """A figure as a `<div>` with its data; the page needs `plotly_script()` once, before it."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = [html.escape(panel.title) for panel in figure.panels]
    drawn = make_subplots(rows=1, cols=len(titles), subplot_titles=titles)
    for column, panel in enumerate(figure.panels, start=1):
        for series in panel.series:
            points = go.Scatter(
                x=list(series.x),
                y=list(series.y),
                name=html.escape(series.label or ""),
                showlegend=series.label is not None,
                mode=HTML_MODES.get(series.style, "lines"),
                opacity=0.2 if series.style == "faint" else 1,
                line={"color": series.colour, "dash": "dash" if series.style == "dashed" else None},
                marker={"color": series.colour, "size": 9, "symbol": series.marker},
                error_y={"array": series.error},
                error_x={"array": series.error_x},
                text=[html.escape(note) for note in series.notes or ()],
                hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra>%{fullData.name}</extra>",
                hoverinfo="skip" if series.style == "faint" else None,
            )
            drawn.add_trace(points, row=1, col=column)
        ticks = None if panel.ticks is None else list(panel.ticks)
        drawn.update_xaxes(title_text=html.escape(panel.x_label), tickvals=ticks, row=1, col=column)
        drawn.update_yaxes(title_text=html.escape(panel.y_label), row=1, col=column)
    legend = {"orientation": "h", "y": -0.2}
    drawn.update_layout(template="plotly_white", height=520, hovermode="closest", legend=legend)
    return str(drawn.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{figure.name}"))


def plotly_script() -> str:
    """The library itself, for a page that opens without a network.

    Raises:
        ImportError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"
