"""The figures of a report, and the data each shows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from recyclegpt.reporting.curves import training_curve
from recyclegpt.reporting.figure import PALETTE, Figure, Level, Panel, Series
from recyclegpt.reporting.runs import Run
from recyclegpt.reporting.settings import Setting, lines_along, pareto_front, swept_keys

PERPLEXITY = "held-out perplexity"
QUALITY = {"val/ppl_backbone": "backbone", "val/ppl_recycle": "module", "val/ppl_alternating": "alternating"}
SHARES = {"val/agreement": "agreement, held-out text", "decode/acceptance": "acceptance rate, its own text"}
SPEEDUPS = {"decode/speedup_alternating": "alternating", "decode/speedup_verified": "verified"}
QUALITY_OF = {"alternating": "val/ppl_alternating", "verified": "val/ppl_backbone"}
"""Perplexity of the text that a decoder writes: verified text is the backbone's."""
SMOOTHED_TO = 40
"""A smoothed training curve has about this many independent points."""


def make_figures(runs: Sequence[Run], settings: Sequence[Setting]) -> list[Figure]:
    """All figures that these runs have data for."""
    along = [_along(settings, key) for key in swept_keys(runs)]
    figures = [_pareto(settings), *along, _recycled_tokens(settings), _training(settings)]
    return [figure for figure in figures if figure.panels]


def pareto_points(settings: Sequence[Setting]) -> list[tuple[Setting, str, float, float]]:
    """Setting, decoder, speedup and perplexity of everything that has both."""
    points = []
    for setting in with_module(settings):
        for decoder, quality in QUALITY_OF.items():
            speedup, perplexity = setting.mean(f"decode/speedup_{decoder}"), setting.mean(quality)
            if speedup is not None and perplexity is not None:
                points.append((setting, decoder, speedup, perplexity))
    return points


def with_module(settings: Sequence[Setting]) -> list[Setting]:
    """All but the controls."""
    return [setting for setting in settings if setting.control is None]


def _pareto(settings: Sequence[Setting]) -> Figure:
    """Speedup against perplexity: each decoder of each setting, the front, and the controls as lines."""
    panel = Panel("", "speedup over the same model's autoregressive decoding", PERPLEXITY, levels=_controls(settings))
    points = pareto_points(settings)
    front = [points[i][2:] for i in pareto_front([point[2:] for point in points])]
    panel.series.append(
        Series("Pareto front", [x for x, _ in front], [y for _, y in front], style="line", colour="#999999")
    )
    colours = {id(setting): PALETTE[i % len(PALETTE)] for i, setting in enumerate(with_module(settings))}
    for setting, decoder, speedup, perplexity in points:
        panel.series.append(
            Series(
                f"{setting.label}: {decoder}",
                [speedup],
                [perplexity],
                [setting.spread(QUALITY_OF[decoder])],
                [setting.spread(f"decode/speedup_{decoder}")],
                [f"{setting.label}, {decoder}, {len(setting.runs)} seeds"],
                "points",
                colours[id(setting)],
                "circle" if decoder == "alternating" else "square",
            )
        )
    return Figure("pareto", "Speed against quality (means over seeds, bars: standard deviation)", [panel])


def _controls(settings: Sequence[Setting]) -> list[Level]:
    """The models without a module, by the perplexity of their backbone."""
    found: list[Level] = []
    greys = ("#000000", "#666666", "#8c6d31", "#7b4173", "#3f6b7f")
    for setting in settings:
        perplexity = setting.mean("val/ppl_backbone")
        if setting.control is not None and perplexity is not None:
            colour = greys[len(found) % len(greys)]
            found.append(Level(f"control: {setting.label}", perplexity, setting.spread("val/ppl_backbone"), colour))
    return found


def _along(settings: Sequence[Setting], key: str) -> Figure:
    """Quality, agreement and speedup over one swept setting; every other combination is a line of its own."""
    panels = [
        _panel(settings, key, "Quality", PERPLEXITY, QUALITY),
        _panel(settings, key, "How often the module is right", "share of drafted tokens", SHARES),
        _panel(settings, key, "Speed", "speedup over autoregressive", SPEEDUPS),
    ]
    panels[0].levels = _controls(settings)
    return Figure(f"along_{key}", f"Over {key} (bars: standard deviation between seeds)", panels)


def _panel(settings: Sequence[Setting], key: str, title: str, y_label: str, metrics: dict[str, str]) -> Panel:
    panel = Panel(title, key, y_label)
    lines = lines_along(settings, key)
    for i, (fixed, members) in enumerate(lines):
        for j, (metric, name) in enumerate(metrics.items()):
            known = [(setting, y) for setting in members if (y := setting.mean(metric)) is not None]
            panel.series.append(
                Series(
                    name if len(lines) == 1 or not fixed else f"{name} ({fixed})",
                    [float(str(setting.values[key])) for setting, _ in known],
                    [y for _, y in known],
                    [setting.spread(metric) for setting, _ in known],
                    notes=[f"{setting.label}, {len(setting.numbers(metric))} seeds" for setting, _ in known],
                    colour=PALETTE[(j if len(lines) == 1 else i) % len(PALETTE)],
                    marker=("circle", "square", "diamond")[j],
                )
            )
    panel.ticks = sorted({x for series in panel.series for x in series.x})
    return panel


def _recycled_tokens(settings: Sequence[Setting]) -> Figure:
    """Speedup over the number of recycled tokens, where a bench has tried several, with its ceiling."""
    panels = []
    for strategy in QUALITY_OF:
        panel = Panel(strategy, "recycled tokens per backbone pass", "speedup over autoregressive")
        for i, setting in enumerate(with_module(settings)):
            rows: dict[int, list[tuple[float, float]]] = defaultdict(list)
            for row in (row for run in setting.runs for row in run.bench):
                if row.get("strategy") == strategy and row.get("ceiling_measured") is not None:
                    rows[int(row["num_recycled"])].append((row["speedup"], row["ceiling_measured"]))
            if len(rows) > 1:
                x = sorted(rows)
                speedups, ceilings = ([statistics.fmean(pair[k] for pair in rows[m]) for m in x] for k in (0, 1))
                colour = PALETTE[i % len(PALETTE)]
                panel.series += [
                    Series(setting.label, x, speedups, colour=colour),
                    Series(None, x, ceilings, style="dashed", colour=colour),
                ]
        panel.ticks = sorted({x for series in panel.series for x in series.x})
        panels.append(panel)
    return Figure("recycled_tokens", "Several recycled tokens (dashed: ceiling by the measured cost of passes)", panels)


def _training(settings: Sequence[Setting]) -> Figure:
    """Training loss over tokens seen, of every run (the kind of figure 3 of arXiv 2308.03421)."""
    panels = [
        Panel("Backbone: next token", "training tokens seen", "training loss (nats per token)"),
        Panel("Module: the token after it", "training tokens seen", "training loss (nats per token)"),
    ]
    for i, setting in enumerate(settings):
        for number, run in enumerate(setting.runs):
            tokens, *losses = training_curve(run)
            for panel, loss in zip(panels, losses, strict=True):
                if len(loss) == len(tokens) and loss:
                    colour = PALETTE[i % len(PALETTE)]
                    smooth = Series(setting.label if number == 0 else None, tokens, _smoothed(loss), colour=colour)
                    smooth.style = "dashed" if i >= len(PALETTE) else "line"
                    smooth.notes = [f"{setting.label}, seed {run.seed}"] * len(loss)
                    panel.series += [Series(None, tokens, loss, style="faint", colour=colour), smooth]
    return Figure("training_loss", "Training loss of every run (faint: as logged)", panels)


def _smoothed(values: list[float]) -> list[float]:
    """Mean of the last few values at every place; fewer at the beginning."""
    window = max(1, len(values) // SMOOTHED_TO)
    return [statistics.fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
