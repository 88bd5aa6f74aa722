"""Figures as interactive parts of a page, by plotly."""

from __future__ import annotations

import html
from typing import Any

from recyclegpt.reporting.figure import Figure, Level, Panel, Series

DASH = {"dashed": "dash"}
MODE = {"line": "lines", "points": "markers", "both": "lines+markers", "faint": "lines", "dashed": "lines"}
SYMBOLS = {"circle": "circle", "square": "square", "diamond": "diamond", "triangle": "triangle-up"}


def draw_html(figure: Figure) -> str:
    """A figure as a `<div>` with its data; the page has to hold `plotly_script()` once, before it.

    Raises:
        ImportError: plotly is not installed.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = [panel for panel in figure.panels if not panel.empty]
    made = make_subplots(rows=1, cols=len(panels), subplot_titles=[html.escape(panel.title) for panel in panels])
    for column, panel in enumerate(panels, start=1):
        for level in panel.levels:
            made.add_trace(_level(go, level, panel), row=1, col=column)
        for series in panel.series:
            made.add_trace(_trace(go, series), row=1, col=column)
        made.update_xaxes(
            title_text=html.escape(panel.x_label),
            type="log" if panel.log_x else "linear",
            tickvals=panel.ticks,
            ticktext=None if panel.tick_names is None else [html.escape(name) for name in panel.tick_names],
            row=1,
            col=column,
        )
        made.update_yaxes(title_text=html.escape(panel.y_label), row=1, col=column)
    made.update_layout(
        template="plotly_white",
        height=520,
        hovermode="closest",
        legend={"orientation": "h", "y": -0.22, "font": {"size": 11}},
        margin={"t": 50, "l": 60, "r": 20},
    )
    return str(made.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{figure.name}"))


def plotly_script() -> str:
    """The library itself, for a page that opens without a network.

    Raises:
        ImportError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _trace(go: Any, series: Series) -> Any:
    notes = None if series.notes is None else [html.escape(note) for note in series.notes]
    return go.Scatter(
        x=list(series.x),
        y=list(series.y),
        name=html.escape(series.label or ""),
        showlegend=series.label is not None,
        mode=MODE[series.style],
        opacity=0.2 if series.style == "faint" else 1,
        line={"color": series.colour, "dash": DASH.get(series.style)},
        marker={"color": series.colour, "size": 9, "symbol": SYMBOLS[series.marker]},
        error_y=_error(series.error),
        error_x=_error(series.error_x),
        text=notes,
        hovertemplate=("%{text}<br>" if notes else "") + "%{x:.4g}, %{y:.4g}<extra>%{fullData.name}</extra>",
        hoverinfo="skip" if series.style == "faint" else None,
    )


def _level(go: Any, level: Level, panel: Panel) -> Any:
    places = [x for series in panel.series for x in series.x]
    spread = "" if level.error is None else f" ± {level.error:.3g}"
    return go.Scatter(
        x=[min(places), max(places)],
        y=[level.y, level.y],
        mode="lines",
        name=html.escape(level.label),
        line={"color": level.colour, "dash": "dash"},
        hovertemplate=f"{html.escape(level.label)}: {level.y:.4g}{spread}<extra></extra>",
    )


def _error(error: Any) -> dict[str, Any] | None:
    return None if error is None else {"type": "data", "array": [length or 0 for length in error]}
