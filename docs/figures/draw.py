"""Draws the figures of the README and the docs: `python docs/figures/draw.py [FOLDER]`. Needs matplotlib alone.

Letters are drawn as paths on an opaque ground, so that a figure looks the same in every browser, light or dark.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, SOFT, GROUND = "#1f2430", "#5b6475", "#ffffff"
BACKBONE, BACKBONE_PALE = "#2f6db3", "#dbe8f6"
MODULE, MODULE_PALE = "#d9731a", "#fce6d2"
SHARED, SHARED_PALE = "#6b7280", "#eceef2"
REJECTED = "#c02b3c"

# Of the timeline, in 1-token backbone passes. A 2-token pass costs the same where decoding is memory-bound.
MODULE_COST = 0.4


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty sheet; its coordinates are inches, the origin at the lower left."""
    figure = plt.figure(figsize=(width, height), facecolor=GROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    place: tuple[float, float, float, float],
    text: str = "",
    *,
    edge: str,
    face: str,
    ink: str = INK,
    size: float = 11,
    rounding: float = 0.08,
    **style: Any,
) -> None:
    """A rounded box at (left, bottom, width, height) with one line of text in its middle."""
    left, bottom, width, height = place
    shape = f"round,pad=0,rounding_size={rounding}"
    style = {"linewidth": 1.4, "zorder": 3, "edgecolor": edge, "facecolor": face, **style}
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, **style))
    middle = (left + width / 2, bottom + height / 2 + 0.015)
    axes.text(*middle, text, ha="center", va="center_baseline", fontsize=size, color=ink, zorder=4)


def arrow(axes: Axes, *points: tuple[float, float], colour: str = INK, dashed: bool = False) -> None:
    """A line through the points with its head at the last."""
    *_, before, last = points
    line = "--" if dashed else "-"
    style = {"color": colour, "linewidth": 1.5, "linestyle": line}
    axes.plot(*zip(*points[:-1], strict=True), zorder=2, solid_capstyle="butt", **style)
    axes.annotate("", last, before, zorder=2, arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **style})


def note(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    style = {"fontsize": 10.5, "color": SOFT, "ha": "center", "va": "center", "linespacing": 1.4, **style}
    axes.text(x, y, text, **style)


def layers(axes: Axes, left: float, bottom: float, width: float, height: float, num: int, text: str, kind: str) -> None:
    """A stack of `num` layers with one label over it."""
    edge, face = (BACKBONE, BACKBONE_PALE) if kind == "backbone" else (MODULE, MODULE_PALE)
    gap = 0.07
    each = (height - gap * (num - 1)) / num
    for index in range(num):
        place = (left, bottom + index * (each + gap), width, each)
        box(axes, place, edge=edge, face=face, rounding=0.05, linewidth=1.1)
    ground = {"facecolor": face, "edgecolor": "none", "pad": 4}
    middle = (left + width / 2, bottom + height / 2)
    note(axes, *middle, text, fontsize=11.5, color=edge, weight="bold", zorder=6, bbox=ground)


def architecture() -> Figure:
    """A plain GPT next to RecycleGPT."""
    figure, axes = canvas(10.9, 6.95)
    axes.set_ylim(-0.45, 6.5)
    wide, embed_y, stack_y, stack_height, state_y, head_y = 1.9, 1.15, 1.95, 2.2, 4.4, 5.05
    tall = 0.42

    def column(left: float, token: str) -> float:
        middle = left + wide / 2
        note(axes, middle, 0.62, token, color=INK, fontsize=13)
        arrow(axes, (middle, 0.8), (middle, embed_y))
        return middle

    # A plain GPT.
    left = 0.55
    middle = column(left, "$x_t$")
    box(axes, (left, embed_y, wide, tall), "embedding  $E$", edge=SHARED, face=SHARED_PALE)
    arrow(axes, (middle, embed_y + tall), (middle, stack_y))
    layers(axes, left, stack_y, wide, stack_height, 6, "backbone\n$L$ layers", "backbone")
    arrow(axes, (middle, stack_y + stack_height), (middle, head_y))
    note(axes, middle + 0.2, state_y + 0.18, "$h_t$", color=BACKBONE, fontsize=13)
    box(axes, (left, head_y, wide, tall), "LM head  $W$", edge=SHARED, face=SHARED_PALE)
    arrow(axes, (middle, head_y + tall), (middle, 5.87))
    note(axes, middle, 6.05, "$p(x_{t+1})$", color=INK, fontsize=12.5)
    axes.plot((3.1, 3.1), (-0.3, 6.15), color="#d5d9e0", linewidth=1.2)

    # RecycleGPT: the same column, and the module to its right. Embedding and head are drawn once: they are shared.
    left, second = 3.75, 6.65
    middle, module = column(left, "$x_t$"), column(second, "$x_{t+1}$")
    span = second + wide - left
    box(axes, (left, embed_y, span, tall), "embedding  $E$, shared", edge=SHARED, face=SHARED_PALE)
    arrow(axes, (middle, embed_y + tall), (middle, stack_y))
    layers(axes, left, stack_y, wide, stack_height, 6, "backbone\n$L$ layers", "backbone")
    arrow(axes, (middle, stack_y + stack_height), (middle, head_y))
    note(axes, middle - 0.25, state_y + 0.18, "$h_t$", color=BACKBONE, fontsize=13)

    fold_y, module_y, module_height = 2.2, 3.2, 1.2
    arrow(axes, (module, embed_y + tall), (module, fold_y))
    note(axes, module + 0.55, 1.88, "$E(x_{t+1})$", color=SHARED, fontsize=11.5)
    turn = (left + wide + second) / 2
    arrow(axes, (middle, state_y), (turn, state_y), (turn, fold_y + 0.26), (second, fold_y + 0.26), colour=BACKBONE)
    axes.plot(middle, state_y, marker="o", color=BACKBONE, markersize=5, zorder=5)
    box(
        axes, (second, fold_y, wide, 0.52), r"$z_t = W_{fold}\,[E(x_{t+1});\,h_t]$", edge=MODULE, face=GROUND, size=10.5
    )
    arrow(axes, (module, fold_y + 0.52), (module, module_y))
    layers(axes, second, module_y, wide, module_height, 3, "recyclable\nmodule, $d$ layers", "module")
    arrow(axes, (module, module_y + module_height), (module, head_y))
    note(axes, module + 0.22, state_y + 0.32, "$r_t$", color=MODULE, fontsize=13)
    box(axes, (left, head_y, span, tall), "LM head  $W$, shared", edge=SHARED, face=SHARED_PALE)
    for x, text in ((middle, "$p(x_{t+1})$"), (module, "$p(x_{t+2})$")):
        arrow(axes, (x, head_y + tall), (x, 5.87))
        note(axes, x, 6.05, text, color=INK, fontsize=12.5)

    # The token that the backbone has just written is what the module reads.
    aside = 8.9
    around = ((turn, 6.05), (turn, 6.3), (aside, 6.3), (aside, 0.62))
    arrow(axes, (middle + 0.62, 6.05), *around, (module + 0.35, 0.62), colour=SOFT, dashed=True)
    note(axes, aside + 0.15, 3.4, "the token that\nthe backbone has\njust written is\nread by the module", ha="left")
    for x, name, num in ((1.5, "plain GPT", "one token"), (6.15, "RecycleGPT", "two tokens")):
        note(axes, x, 0.02, name, weight="bold", color=INK, fontsize=13)
        note(axes, x, -0.25, f"{num} per backbone pass")
    return figure


PASS = tuple[str, str, str]
"""Who runs (backbone, module), the token it writes, and what it says of the token before: ✓ accepted, ✗ rejected."""
AUTOREGRESSIVE: list[PASS] = [("backbone", word, "") for word in ("sat", "on", "the", "mat", "and", "had", "a", "nap")]
ALTERNATING: list[PASS] = [
    ("backbone" if index % 2 == 0 else "module", word, "")
    for index, word in enumerate(("sat", "on", "the", "rug", "and", "had", "a", "nap"))
]
VERIFIED: list[PASS] = [
    ("backbone", "sat", ""), ("module", "on", ""),
    ("backbone", "the", "✓ on"), ("module", "rug", "rejected"),
    ("backbone", "mat", "✗ rug"), ("module", "and", ""),
    ("backbone", "had", "✓ and"), ("module", "a", ""),
    ("backbone", "nap", "✓ a"),
]  # fmt: skip


def timeline() -> Figure:
    """Three decoders write the same eight tokens."""
    figure, axes = canvas(11.4, 5.0)
    origin, unit = 2.25, 0.94
    rows = [
        (3.3, "autoregressive", "the backbone writes\nevery token", AUTOREGRESSIVE),
        (2.05, "alternating", "drafted tokens are kept\nwithout a check", ALTERNATING),
        (0.8, "verified", "the next backbone pass\nverifies them: lossless", VERIFIED),
    ]
    for x in range(9):
        axes.plot((origin + x * unit,) * 2, (0.42, 4.12), color="#e6e9ee", linewidth=1, zorder=0)
        note(axes, origin + x * unit, 0.27, str(x), fontsize=10)
    note(axes, origin - 0.2, 0.27, "time, in backbone passes", ha="right", fontsize=10)

    slowest = len(AUTOREGRESSIVE)
    for y, name, what, passes in rows:
        note(axes, 0.2, y + 0.56, name, ha="left", color=INK, weight="bold", fontsize=13)
        note(axes, 0.2, y + 0.12, what, ha="left", fontsize=10)
        time = 0.0
        for who, word, verdict in passes:
            cost = 1.0 if who == "backbone" else MODULE_COST
            colour, pale = (BACKBONE, BACKBONE_PALE) if who == "backbone" else (MODULE, MODULE_PALE)
            left, width = origin + time * unit + 0.02, cost * unit - 0.04
            rejected = verdict == "rejected"
            inside = "" if rejected else verdict
            bar = (left, y + 0.38, width, 0.36)
            box(axes, bar, inside, edge=colour, face=colour, ink="white", size=10.5, rounding=0.04)
            middle = left + width / 2
            chip = (middle - 0.2, y - 0.08, 0.4, 0.34)
            if rejected:
                box(axes, chip, word, edge=REJECTED, face=GROUND, ink=REJECTED, rounding=0.1, linestyle=":")
                axes.plot((middle - 0.16, middle + 0.16), (y + 0.09,) * 2, color=REJECTED, linewidth=1.3, zorder=6)
            else:
                box(axes, chip, word, edge=colour, face=pale, rounding=0.1, linewidth=1.1)
            time += cost
        gain = "" if passes is AUTOREGRESSIVE else f"   {slowest / time:.2f}x faster"
        end = origin + time * unit + 0.18
        note(axes, end, y + 0.56, f"{time:.1f}", ha="left", color=INK, weight="bold", fontsize=12)
        if gain:
            note(axes, end + 0.35, y + 0.56, gain.strip(), ha="left", fontsize=10.5)
            says = "“rug” stays" if passes is ALTERNATING else "“mat” replaces it"
            note(axes, end, y + 0.09, says, ha="left", fontsize=10)

    legend = [(BACKBONE, "backbone pass"), (MODULE, f"module call (here {MODULE_COST} of a pass)")]
    x = 2.25
    for colour, text in legend:
        box(axes, (x, 4.5, 0.36, 0.22), edge=colour, face=colour, rounding=0.04)
        note(axes, x + 0.48, 4.61, text, ha="left", color=INK)
        x += 1.95
    x += 1.35
    box(axes, (x, 4.48, 0.3, 0.26), edge=BACKBONE, face=BACKBONE_PALE, rounding=0.08, linewidth=1.1)
    box(axes, (x + 0.36, 4.48, 0.3, 0.26), edge=MODULE, face=MODULE_PALE, rounding=0.08, linewidth=1.1)
    note(axes, x + 0.78, 4.61, "token, in its writer's colour", ha="left", color=INK)
    note(axes, 0.2, 4.61, "The cat ...", ha="left", color=INK, fontsize=13, style="italic")
    return figure


FIGURES = {"architecture": architecture, "timeline": timeline}


def draw(folder: Path) -> list[Path]:
    """Write every figure; the same bytes each time."""
    written = []
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "recyclegpt", "mathtext.fontset": "dejavusans"}):
        for name, make in FIGURES.items():
            figure = make()
            written.append(folder / f"{name}.svg")
            figure.savefig(written[-1], metadata={"Date": None, "Creator": None})
            plt.close(figure)
    return written


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(path)
