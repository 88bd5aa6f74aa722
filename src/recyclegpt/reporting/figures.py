"""The figures of a report and of a bench, and the data each shows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from recyclegpt.reporting.figure import PALETTE, Figure, Marker, Panel, Series
from recyclegpt.reporting.run_folders import Run
from recyclegpt.reporting.settings import Setting, lines_along, pareto_front, swept_keys

PERPLEXITY = "held-out perplexity"
QUALITY = {"val/ppl_backbone": "backbone", "val/ppl_recycle": "module", "val/ppl_alternating": "alternating"}
SHARES = {"val/agreement": "agreement, held-out text", "decode/acceptance": "acceptance rate, its own text"}
SPEEDUPS = {"decode/speedup_alternating": "alternating", "decode/speedup_verified": "verified"}
QUALITY_OF = {"alternating": "val/ppl_alternating", "verified": "val/ppl_backbone"}
"""Perplexity of the text that a decoder writes: verified text is the backbone's."""
LOSSES = ("train/loss_backbone", "train/loss_recycle")
MARKERS: tuple[Marker, ...] = ("circle", "square", "diamond")
Row = dict[str, Any]
CEILINGS: dict[str, tuple[str, Marker]] = {
    "ceiling_measured": ("ceiling by measured costs", "square"),
    "ceiling_bytes": ("ceiling by bytes", "diamond"),
}
SMOOTHED_TO = 40
"""A smoothed training curve has about this many independent points."""


def make_figures(runs: Sequence[Run], settings: Sequence[Setting]) -> list[Figure]:
    along = [_along(settings, key) for key in swept_keys(runs)]
    figures = [_pareto(settings), *along, _recycled_tokens(settings), _training(settings)]
    return [figure for figure in figures if figure.panels]


def pareto_points(settings: Sequence[Setting]) -> list[tuple[Setting, str, float, float]]:
    """Setting, decoder, speedup and perplexity of everything that has both; controls are left out."""
    points = []
    for setting in settings:
        for decoder, quality in QUALITY_OF.items():
            speedup, perplexity = setting.mean(f"decode/speedup_{decoder}"), setting.mean(quality)
            if setting.control is None and speedup is not None and perplexity is not None:
                points.append((setting, decoder, speedup, perplexity))
    return points


def _pareto(settings: Sequence[Setting]) -> Figure:
    """Speedup against perplexity: each decoder of each setting, the front, and the controls as lines."""
    points = pareto_points(settings)
    front = [points[i][2:] for i in pareto_front([point[2:] for point in points])]
    x, y = [x for x, _ in front], [y for _, y in front]
    panel = Panel("", "speedup over the same model's autoregressive decoding", PERPLEXITY)
    panel.series = [Series("Pareto front", x, y, style="line", colour="#999999")]
    colours = {setting.label: PALETTE[i % len(PALETTE)] for i, setting in enumerate(settings)}
    for setting, decoder, speedup, perplexity in points:
        point = Series(f"{setting.label}: {decoder}", [speedup], [perplexity], style="points")
        point.error = [setting.spread(QUALITY_OF[decoder]) or 0]
        point.error_x = [setting.spread(f"decode/speedup_{decoder}") or 0]
        point.notes = [f"{setting.label}, {decoder}, {len(setting.runs)} seeds"]
        point.colour, point.marker = colours[setting.label], "circle" if decoder == "alternating" else "square"
        panel.series.append(point)
    _add_controls(panel, settings)
    return Figure("pareto", "Speed against quality (means over seeds, bars: standard deviation)", [panel])


def _add_controls(panel: Panel, settings: Sequence[Setting]) -> None:
    """The models without a module as dashed lines, by the perplexity of their backbone."""
    places = [x for series in panel.series for x in series.x]
    greys = ("#000000", "#666666", "#8c6d31", "#7b4173", "#3f6b7f")
    controls = [setting for setting in settings if setting.control is not None]
    for number, control in enumerate(controls):
        perplexity, spread = control.mean("val/ppl_backbone"), control.spread("val/ppl_backbone") or 0
        if places and perplexity is not None:
            line = Series(f"control: {control.label}", [min(places), max(places)], [perplexity] * 2, [spread] * 2)
            line.style, line.colour = "dashed", greys[number % len(greys)]
            panel.series.append(line)


def _along(settings: Sequence[Setting], key: str) -> Figure:
    """Quality, agreement and speedup over one swept setting; every other combination is a line of its own."""
    panels = [
        _panel(settings, key, "Quality", PERPLEXITY, QUALITY),
        _panel(settings, key, "How often the module is right", "share of drafted tokens", SHARES),
        _panel(settings, key, "Speed", "speedup over autoregressive", SPEEDUPS),
    ]
    _add_controls(panels[0], settings)
    return Figure(f"along_{key}", f"Over {key} (bars: standard deviation between seeds)", panels)


def _panel(settings: Sequence[Setting], key: str, title: str, y_label: str, metrics: dict[str, str]) -> Panel:
    panel = Panel(title, key, y_label)
    lines = lines_along(settings, key)
    for i, (fixed, members) in enumerate(lines):
        for j, (metric, name) in enumerate(metrics.items()):
            known = [(setting, y) for setting in members if (y := setting.mean(metric)) is not None]
            x = [float(setting.values[key] or 0) for setting, _ in known]
            line = Series(name if len(lines) == 1 else f"{name} ({fixed})", x, [y for _, y in known])
            line.error = [setting.spread(metric) or 0 for setting, _ in known]
            line.notes = [f"{setting.label}, {len(setting.numbers(metric))} seeds" for setting, _ in known]
            line.colour, line.marker = PALETTE[(j if len(lines) == 1 else i) % len(PALETTE)], MARKERS[j]
            panel.series.append(line)
    panel.ticks = {x: f"{x:g}" for series in panel.series for x in series.x}
    return panel


def _recycled_tokens(settings: Sequence[Setting]) -> Figure:
    """Speedup over the number of recycled tokens, where a bench has tried several, with its ceiling."""
    panels = []
    for strategy in QUALITY_OF:
        panel = Panel(strategy, "recycled tokens per backbone pass", "speedup over autoregressive")
        for i, setting in enumerate(settings):
            rows: dict[int, list[tuple[float, float]]] = defaultdict(list)
            for row in (row for run in setting.runs for row in run.bench):
                if row["strategy"] == strategy and row.get("ceiling_measured") is not None:
                    rows[row["num_recycled"]].append((row["speedup"], row["ceiling_measured"]))
            if len(rows) > 1:
                x = sorted(rows)
                speedups, ceilings = ([statistics.fmean(pair[k] for pair in rows[m]) for m in x] for k in (0, 1))
                colour = PALETTE[i % len(PALETTE)]
                panel.series += [
                    Series(setting.label, x, speedups, colour=colour),
                    Series(None, x, ceilings, style="dashed", colour=colour),
                ]
        panel.ticks = {x: f"{x:g}" for series in panel.series for x in series.x}
        panels.append(panel)
    return Figure("recycled_tokens", "Several recycled tokens (dashed: ceiling by the measured cost of passes)", panels)


def _training(settings: Sequence[Setting]) -> Figure:
    """Training loss over tokens seen, of every run (the kind of figure 3 of arXiv 2308.03421)."""
    titles = ("Backbone: next token", "Module: the token after it")
    panels = [Panel(title, "training tokens seen", "training loss (nats per token)") for title in titles]
    for i, setting in enumerate(settings):
        for run in setting.runs:
            tokens, *losses = training_curve(run)
            for panel, loss in zip(panels, losses, strict=True):
                if loss:
                    smooth = Series(setting.label if run is setting.runs[0] else None, tokens, _smoothed(loss))
                    smooth.colour = PALETTE[i % len(PALETTE)]
                    smooth.style = "dashed" if i >= len(PALETTE) else "line"
                    smooth.notes = [f"{setting.label}, seed {run.seed}"] * len(loss)
                    panel.series += [Series(None, tokens, loss, style="faint", colour=smooth.colour), smooth]
    return Figure("training_loss", "Training loss of every run (faint: as logged)", panels)


def _smoothed(values: list[float]) -> list[float]:
    """Mean of the last few values at every place; fewer at the beginning."""
    window = max(1, len(values) // SMOOTHED_TO)
    return [statistics.fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def training_curve(run: Run) -> tuple[list[float], list[float], list[float]]:
    """Tokens seen, the backbone's and the module's training loss (nats per token) at every logged step.

    The lists are empty where the run logged nothing, the last one also where it has no module. A step trained twice,
    because the run was interrupted, counts as it was trained last; the cut-off end of a file is left out.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps: dict[str, dict[int, float]] = {tag: {} for tag in LOSSES}
    for path in sorted((run.folder / "tensorboard").glob("events.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1, "tensors": 1}).Reload()
        for tag in set(LOSSES) & set(events.Tags()["scalars"]):
            steps[tag].update((event.step, event.value) for event in events.Scalars(tag))
    backbone, module = (dict(sorted(steps[tag].items())) for tag in LOSSES)
    num_tokens, num_steps = run.metrics.get("train.tokens"), run.metrics.get("train.steps")
    per_step = num_tokens / num_steps if num_steps and num_tokens else 1.0
    # Lightning logs the N-th step as step N - 1.
    return [(step + 1) * per_step for step in backbone], list(backbone.values()), list(module.values())


def bench_figure(document: dict[str, Any]) -> Figure:
    """The document of `recyclegpt bench` as a figure: a panel per batch, length and dtype."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in document["rows"]:
        if row["strategy"] != "autoregressive":
            groups["batch {batch}, {prompt_tokens} + {new_tokens} tokens, {dtype}".format(**row)].append(row)
    title = f"Speedup over autoregressive decoding ({document['hardware']['device']})"
    return Figure("bench", title, [_bench_panel(title, rows) for title, rows in groups.items()])


def _bench_panel(title: str, rows: list[Row]) -> Panel:
    places, speedups = range(len(rows)), [row["speedup"] for row in rows]
    spreads = [(row["speedup_spread"][1] - row["speedup_spread"][0]) / 2 for row in rows]
    panel = Panel(
        title, "", "speedup", [Series("measured (half of its range)", places, speedups, spreads, style="points")]
    )
    for number, (key, (label, marker)) in enumerate(CEILINGS.items(), start=1):
        x = [place for place in places if rows[place][key] is not None]
        y = [rows[place][key] for place in x]
        panel.series += [Series(label, x, y, style="points", colour=PALETTE[number], marker=marker)] if x else []
    panel.ticks = {place: _bench_label(row) for place, row in enumerate(rows)}
    return panel


def _bench_label(row: Row) -> str:
    if row["strategy"] == "transformers":
        return f"transformers\n{row['cache']}"
    label = f"{row['strategy']}\ndepth {row['recycle_num_layers']}\nm {row['num_recycled']}"
    if (drafter := row.get("drafter") or "module") != "module":
        label = f"{label}\n{drafter}"
    drafts_nothing = row["acceptance"] is None  # lookup may find no match
    return label if row["strategy"] == "alternating" or drafts_nothing else f"{label}\nat {row['acceptance']:.0%}"
