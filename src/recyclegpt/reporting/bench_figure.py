"""`bench.png`: speedup against ceiling, over recycle depth and the number of recycled tokens."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from recyclegpt.reporting.figure import PALETTE, Figure, Marker, Panel, Series

Row = dict[str, Any]
CEILINGS: dict[str, tuple[str, Marker]] = {
    "ceiling_measured": ("ceiling by measured costs", "square"),
    "ceiling_bytes": ("ceiling by bytes", "diamond"),
}


def bench_figure(document: dict[str, Any]) -> Figure:
    """The document of `recyclegpt bench` as a figure: a panel per batch, length and dtype."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in document["rows"]:
        if row["strategy"] != "autoregressive":
            groups["batch {batch}, {prompt_tokens} + {new_tokens} tokens, {dtype}".format(**row)].append(row)
    title = f"Speedup over autoregressive decoding ({document['hardware']['device']})"
    return Figure("bench", title, [_panel(title, rows) for title, rows in groups.items()])


def _panel(title: str, rows: list[Row]) -> Panel:
    places, speedups = range(len(rows)), [row["speedup"] for row in rows]
    spreads = [(row["speedup_spread"][1] - row["speedup_spread"][0]) / 2 for row in rows]
    panel = Panel(
        title, "", "speedup", [Series("measured (half of its range)", places, speedups, spreads, style="points")]
    )
    for number, (key, (label, marker)) in enumerate(CEILINGS.items(), start=1):
        x = [place for place in places if rows[place][key] is not None]
        y = [rows[place][key] for place in x]
        panel.series += [Series(label, x, y, style="points", colour=PALETTE[number], marker=marker)] if x else []
    panel.ticks = {place: _label(row) for place, row in enumerate(rows)}
    return panel


def _label(row: Row) -> str:
    if row["strategy"] == "transformers":
        return f"transformers\n{row['cache']}"
    label = f"{row['strategy']}\ndepth {row['recycle_num_layers']}\nm {row['num_recycled']}"
    return label if row["strategy"] == "alternating" else f"{label}\nat {row['acceptance']:.0%}"
