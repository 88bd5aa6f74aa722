"""Figures drawn twice: as PNG by matplotlib, and as an interactive part of a page by plotly."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recyclegpt.reporting.figure import Figure, Panel, Series

PNG_MARKERS = {"circle": "o", "square": "s", "diamond": "D"}
PNG_LINES = {"dashed": "--", "points": "none"}
HTML_MODES = {"points": "markers", "both": "lines+markers"}


def draw_png(figure: Figure, path: Path) -> None:
    """Draw a figure's panels side by side, each with its legend below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure as Canvas

    # Not pyplot: it would choose a screen, and keep every figure.
    canvas = Canvas(figsize=(max(7.2, 5.2 * len(figure.panels)), 5.0), layout="constrained")
    for axis, panel in zip(canvas.subplots(1, len(figure.panels), squeeze=False)[0], figure.panels, strict=True):
        _draw_panel(axis, panel)
    canvas.suptitle(figure.title, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)


def _draw_panel(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter

    for number, level in enumerate(panel.levels):
        axis.axhline(level.y, color=level.colour, ls="--", lw=1.2, label=level.label)
        if level.error and number == 0:  # overlapping bands could not be told apart
            axis.axhspan(level.y - level.error, level.y + level.error, color=level.colour, alpha=0.12, lw=0)
    for series in panel.series:
        faint = series.style == "faint"
        axis.errorbar(
            series.x,
            series.y,
            yerr=_lengths(series.error),
            xerr=_lengths(series.error_x),
            marker=PNG_MARKERS[series.marker] if series.style in HTML_MODES else None,
            ls=PNG_LINES.get(series.style, "-"),
            color=series.colour,
            label=series.label,
            alpha=0.15 if faint else 1,
            lw=0.8 if faint else 1.4,
            capsize=3,
        )
    axis.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axis.set_title(panel.title, fontsize=10)
    if panel.ticks is not None:
        axis.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
    elif max((x for series in panel.series for x in series.x), default=0) >= 10_000:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.margins(0.08)
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def draw_html(figure: Figure) -> str:
    """A figure as a `<div>` with its data; the page needs `plotly_script()` once, before it.

    Raises:
        ImportError: plotly is not installed.
    """
    from plotly.subplots import make_subplots

    made = make_subplots(
        rows=1, cols=len(figure.panels), subplot_titles=[html.escape(panel.title) for panel in figure.panels]
    )
    for column, panel in enumerate(figure.panels, start=1):
        places = [x for series in panel.series for x in series.x]
        for level in panel.levels:
            line = Series(level.label, [min(places), max(places)], [level.y] * 2, style="dashed", colour=level.colour)
            made.add_trace(_trace(line), row=1, col=column)
        for series in panel.series:
            made.add_trace(_trace(series), row=1, col=column)
        made.update_xaxes(title_text=html.escape(panel.x_label), tickvals=panel.ticks, row=1, col=column)
        made.update_yaxes(title_text=html.escape(panel.y_label), row=1, col=column)
    made.update_layout(template="plotly_white", height=520, hovermode="closest", legend={"orientation": "h", "y": -0.2})
    return str(made.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{figure.name}"))


def plotly_script() -> str:
    """The library itself, for a page that opens without a network.

    Raises:
        ImportError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _trace(series: Series) -> Any:
    import plotly.graph_objects as go

    notes = None if series.notes is None else [html.escape(note) for note in series.notes]
    return go.Scatter(
        x=list(series.x),
        y=list(series.y),
        name=html.escape(series.label or ""),
        showlegend=series.label is not None,
        mode=HTML_MODES.get(series.style, "lines"),
        opacity=0.2 if series.style == "faint" else 1,
        line={"color": series.colour, "dash": "dash" if series.style == "dashed" else None},
        marker={"color": series.colour, "size": 9, "symbol": series.marker},
        error_y=None if series.error is None else {"array": _lengths(series.error)},
        error_x=None if series.error_x is None else {"array": _lengths(series.error_x)},
        text=notes,
        hovertemplate=("%{text}<br>" if notes else "") + "%{x:.4g}, %{y:.4g}<extra>%{fullData.name}</extra>",
        hoverinfo="skip" if series.style == "faint" else None,
    )


def _lengths(error: Sequence[float | None] | None) -> list[float] | None:
    return None if error is None else [length or 0.0 for length in error]
