"""`bench.png`: speedup against ceiling, over recycle depth and the number of recycled tokens."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLOURS = {"alternating": "#2a9d8f", "verified": "#3d5a98", "transformers": "#999999"}


def draw_bench(document: dict[str, Any], path: Path) -> None:
    """Draw the document of `recyclegpt bench`.

    One panel per batch, length and dtype: bars are measured speedups with their spread, the solid tick
    above each is its measured-cost ceiling, the dotted one its byte ceiling.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    groups: dict[str, list[Row]] = defaultdict(list)
    for row in document["rows"]:
        if row["strategy"] != "autoregressive":
            title = "batch {batch}, {prompt_tokens} + {new_tokens} tokens, {dtype}".format(**row)
            groups[title].append(row)
    if not groups:
        return
    widest = max(map(len, groups.values()))
    columns = min(max(1, 14 // widest), 3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(columns * max(4.5, 0.95 * widest), 4.4 * lines), layout="constrained")
    for number, (title, rows) in enumerate(groups.items(), start=1):
        axis = figure.add_subplot(lines, columns, number)
        _draw_panel(axis, rows)
        axis.set_title(title, fontsize=10)
    figure.axes[0].legend(fontsize=8, loc="upper left")
    figure.suptitle(f"Speedup over autoregressive decoding ({document['hardware']['device']})", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _draw_panel(axis: Any, rows: list[Row]) -> None:
    places = range(len(rows))
    speedups = [row["speedup"] for row in rows]
    lengths = [[abs(row["speedup_spread"][end] - row["speedup"]) for row in rows] for end in (0, 1)]
    colours = [COLOURS.get(row["strategy"], "#b5838d") for row in rows]
    bars = axis.bar(places, speedups, 0.7, yerr=lengths, color=colours)
    axis.bar_label(bars, fmt="%.2f", label_type="center", color="white", fontsize=8)
    ceilings = (("ceiling_measured", "-", "ceiling by measured costs"), ("ceiling_bytes", ":", "ceiling by bytes"))
    for key, style, label in ceilings:
        if known := [(place, row[key]) for place, row in zip(places, rows, strict=True) if row[key] is not None]:
            x, y = zip(*known, strict=True)
            ends = [place - 0.42 for place in x], [place + 0.42 for place in x]
            axis.hlines(y, *ends, color="#c1121f", ls=style, label=label)
    axis.axhline(1, color="black", lw=0.8, ls="--")
    axis.set_xticks(places, [_label(row) for row in rows], fontsize=7.5)
    axis.set_ylabel("speedup")
    axis.set_ylim(0, 1.18 * max(max(row["speedup_spread"][1], row["ceiling_measured"] or 0) for row in rows))


def _label(row: Row) -> str:
    if row["strategy"] == "transformers":
        return f"transformers\n{row['cache']}"
    label = f"{row['strategy']}\ndepth {row['recycle_num_layers']}, m {row['num_recycled']}"
    return label if row["strategy"] == "alternating" else f"{label}\nacceptance {row['acceptance']:.0%}"
