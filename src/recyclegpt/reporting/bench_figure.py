"""`bench.png`: speedup against ceiling, over recycle depth and the number of recycled tokens."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def draw_bench(document: dict[str, Any], path: Path) -> None:
    """Draw the document of `recyclegpt bench`.

    One panel per batch, length and dtype: bars are measured speedups with their spread, the solid tick
    above each is its measured-cost ceiling, the dotted one its byte ceiling.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in document["rows"]:
        if row["strategy"] != "autoregressive":
            groups[tuple(row[key] for key in ("batch", "prompt_tokens", "new_tokens", "dtype"))].append(row)
    if not groups:
        return
    widest = max(map(len, groups.values()))
    columns = min(max(1, 14 // widest), 3, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(columns * max(4.5, 0.95 * widest), 4.4 * lines), squeeze=False, layout="constrained"
    )
    for axis, (key, rows) in zip(axes.flat, groups.items(), strict=False):
        _panel(axis, rows)
        batch, prompt_tokens, new_tokens, dtype = key
        axis.set_title(f"batch {batch}, {prompt_tokens} + {new_tokens} tokens, {dtype}", fontsize=10)
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    axes[0][0].legend(fontsize=8, loc="upper left")
    hardware = document["hardware"]
    figure.suptitle(f"Speedup over autoregressive decoding ({hardware['device']})", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _panel(axis: Any, rows: list[Row]) -> None:
    colours = {"alternating": "#2a9d8f", "verified": "#3d5a98", "transformers": "#999999"}
    for place, row in enumerate(rows):
        low, high = row["speedup_spread"]
        axis.bar(place, row["speedup"], width=0.7, color=colours.get(row["strategy"], "#b5838d"))
        axis.errorbar(place, row["speedup"], [[row["speedup"] - low], [high - row["speedup"]]], color="black", lw=1)
        axis.annotate(
            f"{row['speedup']:.2f}", (place, 0.03), ha="center", va="bottom", color="white", fontsize=8,
            xycoords=("data", "axes fraction"),
        )  # fmt: skip
        first = place == 0
        for key, style, label in (
            ("ceiling_measured", "-", "ceiling by measured costs"),
            ("ceiling_bytes", ":", "ceiling by bytes"),
        ):
            if row[key] is not None:
                axis.hlines(
                    row[key], place - 0.42, place + 0.42, color="#c1121f", ls=style, label=label if first else None
                )
    axis.axhline(1, color="black", lw=0.8, ls="--")
    axis.set_xticks(range(len(rows)), [_label(row) for row in rows], fontsize=7.5)
    axis.set_ylabel("speedup")
    axis.set_ylim(0, 1.18 * max(max(row["speedup_spread"][1], row["ceiling_measured"] or 0) for row in rows))


def _label(row: Row) -> str:
    if row["strategy"] == "transformers":
        return f"transformers\n{row['cache']}"
    label = f"{row['strategy']}\ndepth {row['recycle_num_layers']}, m {row['num_recycled']}"
    return label if row["strategy"] == "alternating" else f"{label}\nacceptance {row['acceptance']:.0%}"
