"""Figures as PNG files, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recyclegpt.reporting.figure import Figure, Panel

MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}


def draw_png(figure: Figure, path: Path) -> None:
    """Draw a figure's panels side by side, each with its legend below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure as Canvas

    panels = [panel for panel in figure.panels if not panel.empty]
    # Not pyplot: it would choose a screen, and keep every figure.
    canvas = Canvas(figsize=(max(7.2, 5.2 * len(panels)), 5.0), layout="constrained")
    for axis, panel in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axis, panel)
    canvas.suptitle(figure.title, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)


def _draw(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter

    for number, level in enumerate(panel.levels):
        axis.axhline(level.y, color=level.colour, ls="--", lw=1.2, label=level.label)
        if level.error and number == 0:  # bands over bands cannot be told apart
            axis.axhspan(level.y - level.error, level.y + level.error, color=level.colour, alpha=0.12, lw=0)
    for series in panel.series:
        if series.style in ("points", "both"):
            axis.errorbar(
                series.x,
                series.y,
                yerr=_lengths(series.error),
                xerr=_lengths(series.error_x),
                fmt=MARKERS[series.marker] + ("-" if series.style == "both" else ""),
                color=series.colour,
                label=series.label,
                capsize=3,
                ms=6,
                lw=1.4,
            )
        else:
            faint = series.style == "faint"
            style = "--" if series.style == "dashed" else "-"
            axis.plot(
                series.x,
                series.y,
                style,
                color=series.colour,
                label=series.label,
                alpha=0.15 if faint else 1,
                lw=0.8 if faint else 1.4,
            )
    axis.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
    axis.title.set_fontsize(10)
    if panel.log_x:
        axis.set_xscale("log")
        axis.minorticks_off()
    if panel.ticks is not None:
        axis.set_xticks(panel.ticks, panel.tick_names or [f"{tick:g}" for tick in panel.ticks])
    elif max((x for series in panel.series for x in series.x), default=0) >= 10_000:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.margins(0.08)
    axis.grid(alpha=0.25)
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        # Below the axes, where it covers no point.
        axis.legend(
            handles, labels, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False
        )


def _lengths(error: Any) -> list[float] | None:
    return None if error is None else [0.0 if length is None else length for length in error]
