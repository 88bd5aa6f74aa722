"""Which figures a report has, and what each shows."""

from __future__ import annotations

from collections.abc import Sequence

from recyclegpt.reporting.curves import smoothed, training_curve
from recyclegpt.reporting.figure import PALETTE, Figure, Level, Panel, Series, Style
from recyclegpt.reporting.runs import Run
from recyclegpt.reporting.settings import SHORT, Setting, lines_along, pareto_front, swept_keys

PERPLEXITY = "held-out perplexity"
QUALITY = {"val/ppl_backbone": "backbone", "val/ppl_recycle": "module", "val/ppl_alternating": "alternating"}
SHARES = {"val/agreement": "agreement, held-out text", "decode/acceptance": "acceptance, its own text"}
SPEEDUPS = {"decode/speedup_alternating": "alternating", "decode/speedup_verified": "verified"}
QUALITY_OF = {"alternating": "val/ppl_alternating", "verified": "val/ppl_backbone"}
"""Perplexity of the text that a decoder takes: verified text is the backbone's."""
SMOOTHED_TO = 40
"""A training curve is smoothed so far that about as many points tell something new."""


def make_figures(runs: Sequence[Run], settings: Sequence[Setting]) -> list[Figure]:
    """All figures that these runs have data for."""
    along = [_along(settings, key) for key in swept_keys(runs)]
    figures = [pareto_figure(settings), *along, _recycled_tokens(settings), _training(settings)]
    return [figure for figure in figures if not figure.empty]


def pareto_points(settings: Sequence[Setting]) -> list[tuple[Setting, str, float, float]]:
    """Setting, decoder, speedup and perplexity of everything that has both."""
    points = []
    for setting in settings:
        for decoder, quality in QUALITY_OF.items():
            speedup, perplexity = setting.mean(f"decode/speedup_{decoder}"), setting.mean(quality)
            if setting.control is None and speedup is not None and perplexity is not None:
                points.append((setting, decoder, speedup, perplexity))
    return points


def pareto_figure(settings: Sequence[Setting]) -> Figure:
    """Speedup against perplexity: each decoder of each setting, the front, and the controls as lines."""
    panel = Panel("", "speedup over the same model's autoregressive decoding", PERPLEXITY, levels=controls(settings))
    points = pareto_points(settings)
    front = [points[i] for i in pareto_front([(speedup, perplexity) for *_, speedup, perplexity in points])]
    panel.series.append(
        Series("Pareto front", [p[2] for p in front], [p[3] for p in front], style="line", colour="#999999")
    )
    with_module = [setting for setting in settings if setting.control is None]
    for i, setting in enumerate(with_module):
        for own, decoder, speedup, perplexity in points:
            if own is setting:
                panel.series.append(
                    Series(
                        f"{setting.label}: {decoder}",
                        [speedup],
                        [perplexity],
                        [setting.spread(QUALITY_OF[decoder])],
                        [setting.spread(f"decode/speedup_{decoder}")],
                        [f"{setting.label}, {decoder}, {len(setting.runs)} seeds"],
                        "points",
                        PALETTE[i % len(PALETTE)],
                        "circle" if decoder == "alternating" else "square",
                    )
                )
    return Figure("pareto", "Speed against quality (means over seeds, bars: standard deviation)", [panel])


def controls(settings: Sequence[Setting]) -> list[Level]:
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
        _panel(settings, key, "How often the module is right", "share of recycled tokens", SHARES),
        _panel(settings, key, "Speed", "speedup over autoregressive", SPEEDUPS),
    ]
    panels[0].levels = controls(settings)
    return Figure(f"along_{key}", f"Over {key} (bars: standard deviation between seeds)", panels)


def _panel(settings: Sequence[Setting], key: str, title: str, y_label: str, metrics: dict[str, str]) -> Panel:
    panel = Panel(title, key, y_label)
    styles = ("circle", "square", "diamond")
    lines = lines_along(settings, key)
    for i, (fixed, members) in enumerate(lines):
        for j, (metric, name) in enumerate(metrics.items()):
            known = [(setting, y) for setting in members if (y := setting.mean(metric)) is not None]
            colour = PALETTE[(j if len(lines) == 1 else i) % len(PALETTE)]
            panel.series.append(
                Series(
                    name if len(lines) == 1 or not fixed else f"{name} ({fixed})",
                    [float(str(setting.values[key])) for setting, _ in known],
                    [y for _, y in known],
                    [setting.spread(metric) for setting, _ in known],
                    notes=[f"{setting.label}, {len(setting.numbers(metric))} seeds" for setting, _ in known],
                    colour=colour,
                    marker=styles[j % len(styles)],  # type: ignore[arg-type]
                )
            )
    panel.ticks = sorted({x for series in panel.series for x in series.x})
    return panel


def _recycled_tokens(settings: Sequence[Setting]) -> Figure:
    """Speedup over the number of recycled tokens, where a bench has tried several, beside its ceiling."""
    panels = []
    for strategy in ("alternating", "verified"):
        panel = Panel(strategy, "recycled tokens a backbone pass", "speedup over autoregressive")
        for i, setting in enumerate(s for s in settings if s.control is None):
            means = _bench_means(setting, strategy)
            if len(means) > 1:
                colour = PALETTE[i % len(PALETTE)]
                x = sorted(means)
                panel.series += [
                    Series(setting.label, x, [means[m][0] for m in x], colour=colour),
                    Series(None, x, [means[m][1] for m in x], style="dashed", colour=colour),
                ]
        panel.ticks = sorted({x for series in panel.series for x in series.x})
        panels.append(panel)
    return Figure("recycled_tokens", "Several recycled tokens (dashed: ceiling by the measured cost of passes)", panels)


def _bench_means(setting: Setting, strategy: str) -> dict[int, tuple[float, float]]:
    """Number of recycled tokens: mean speedup and mean ceiling over seeds."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for run in setting.runs:
        for row in run.bench:
            if row.get("strategy") == strategy and row.get("ceiling_measured") is not None:
                rows.setdefault(int(row["num_recycled"]), []).append((row["speedup"], row["ceiling_measured"]))
    return {
        m: (sum(s for s, _ in pairs) / len(pairs), sum(c for _, c in pairs) / len(pairs)) for m, pairs in rows.items()
    }


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
                    notes = [f"{setting.label}, seed {run.seed}"] * len(loss)
                    label = setting.label if number == 0 else None
                    style: Style = "dashed" if i >= len(PALETTE) else "line"
                    panel.series += [
                        Series(None, tokens, loss, style="faint", colour=colour),
                        Series(
                            label,
                            tokens,
                            smoothed(loss, max(1, len(loss) // SMOOTHED_TO)),
                            notes=notes,
                            style=style,
                            colour=colour,
                        ),
                    ]
    return Figure("training_loss", "Training loss of every run (faint: as logged)", panels)


def short_name(key: str) -> str:
    """A setting's name in tables."""
    return SHORT.get(key, key)
