"""The figures of a GPU report: decoding beside its ceilings, batches, training beside the peak, and the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recyclegpt.reporting.figure import PALETTE, Figure, Level, Panel, Series, Style
from recyclegpt.reporting.plain_values import number

Row = Mapping[str, Any]
Parts = Mapping[str, Mapping[str, Any]]

RECYCLED = "recycled tokens a backbone pass"
SPEEDUP = "speedup over autoregressive"
BANDWIDTH_TARGET = 0.70
MFU_TARGET = 0.45


def gpu_figures(parts: Parts) -> list[Figure]:
    """All figures that these parts have data for."""
    decode, trained = _rows(parts, "decode"), _rows(parts, "trained")
    figures = [
        Figure(
            "decode_num_recycled",
            "Decoding, untrained weights, batch 1 (dashed: ceiling by the measured cost of passes)",
            [_recycled(shape, _at_batch_1(decode, shape)) for shape in shapes(decode)],
        ),
        Figure("bandwidth", "Share of a copy's bandwidth that decoding reads at", [_bandwidth(decode)]),
        Figure("batch", "Batches", _batches(decode)),
        Figure("training", "Training speed", [_mfu(_rows(parts, "training")), _rate(_rows(parts, "training"))]),
        Figure("run", "A model trained here", _run(parts.get("train", {}))),
        Figure(
            "trained_num_recycled",
            "The model trained here, held-out prompts, batch 1 (dashed: ceiling by the measured cost of passes)",
            [_recycled("", [row for row in trained if row.get("batch") == 1]), _kept(trained)],
        ),
    ]
    return [figure for figure in figures if not figure.empty]


def shapes(rows: Iterable[Row]) -> list[str]:
    """Names of the shapes, in order."""
    return sorted({str(row["shape"]) for row in rows if row.get("shape")})


def _rows(parts: Parts, part: str) -> list[Row]:
    return list(parts.get(part, {}).get("rows", ()))


def _at_batch_1(rows: Iterable[Row], shape: str) -> list[Row]:
    """Of the measurements over depth and number of recycled tokens; those over batches are of one depth alone."""
    own = [row for row in rows if row.get("shape") == shape and row.get("batch") == 1]
    return [row for row in own if row.get("call") != "batches"]


def _points(rows: Iterable[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """Pairs of two numbers of a row, in order of the first; of rows that share the first the earliest counts."""
    found: dict[float, float] = {}
    for row in rows:
        first, second = number(row.get(x)), number(row.get(y))
        if first is not None and second is not None:
            found.setdefault(first, second)
    return sorted(found), [found[key] for key in sorted(found)]


def _line(
    label: str | None, rows: Sequence[Row], x: str, y: str, place: int, style: Style = "both", square: bool = False
) -> Series:
    xs, ys = _points(rows, x, y)
    colour = PALETTE[place % len(PALETTE)]
    return Series(label, xs, ys, style=style, colour=colour, marker="square" if square else "circle")


def _ticks(panel: Panel) -> Panel:
    panel.ticks = sorted({x for series in panel.series for x in series.x})
    return panel


def _recycled(shape: str, rows: Sequence[Row]) -> Panel:
    panel = Panel(shape, RECYCLED, SPEEDUP, levels=[Level("autoregressive", 1.0, None, "#666666")])
    of = {name: [row for row in rows if row.get("strategy") == name] for name in ("alternating", "verified")}
    depths = sorted({row.get("recycle_num_layers") or 0 for row in of["alternating"]})
    for i, depth in enumerate(depths):
        for j, (name, own) in enumerate(of.items()):
            own = [row for row in own if row.get("recycle_num_layers") == depth]
            given = [kept for row in own if row.get("acceptance_given") and (kept := number(row.get("acceptance")))]
            label = f"{name}, depth {depth}" + (f" ({sum(given) / len(given):.0%} kept)" if given else "")
            # Where all are of one depth, the decoders have a colour each.
            place = j if len(depths) == 1 else i
            panel.series.append(_line(label, own, "num_recycled", "speedup", place, square=bool(j)))
            if not given:
                panel.series.append(_line(None, own, "num_recycled", "ceiling_measured", place, "dashed"))
    return _ticks(panel)


def _bandwidth(rows: Sequence[Row]) -> Panel:
    panel = Panel("", f"{RECYCLED} (0: autoregressive)", "share of the bandwidth of a copy")
    panel.levels = [Level(f"target {BANDWIDTH_TARGET:.0%}", BANDWIDTH_TARGET, None, "#666666")]
    for i, shape in enumerate(shapes(rows)):
        own = _at_batch_1(rows, shape)
        deepest = max((row.get("recycle_num_layers") or 0 for row in own), default=0)
        shown = [
            row
            for row in own
            if row.get("recycle_num_layers") == deepest and row.get("strategy") in ("autoregressive", "alternating")
        ]
        panel.series.append(_line(f"{shape}, depth {deepest}", shown, "num_recycled", "bandwidth_utilisation", i))
    return _ticks(panel)


def _batches(rows: Sequence[Row]) -> list[Panel]:
    rates = Panel("Tokens a second of the whole batch", "batch", "tokens/s", log_x=True)
    gains = Panel("What recycling still gains", "batch", SPEEDUP, log_x=True)
    gains.levels = [Level("autoregressive", 1.0, None, "#666666")]
    for i, shape in enumerate(shapes(rows)):
        own = [row for row in rows if row.get("shape") == shape and row.get("call") == "batches"]
        of = {name: [row for row in own if row.get("strategy") == name] for name in ("autoregressive", "alternating")}
        rates.series += [
            _line(f"{shape}, autoregressive", of["autoregressive"], "batch", "tokens_per_s", i, "dashed"),
            _line(f"{shape}, alternating", of["alternating"], "batch", "tokens_per_s", i),
        ]
        gains.series += [
            _line(f"{shape}, alternating", of["alternating"], "batch", "speedup", i),
            _line(None, of["alternating"], "batch", "ceiling_measured", i, "dashed"),
        ]
    return [_ticks(rates), _ticks(gains)]


def _mfu(rows: Sequence[Row]) -> Panel:
    panel = _over_size("Model FLOPs utilisation", "share of the dense bf16 peak", rows, "mfu", lambda value: value)
    panel.levels = [Level(f"target {MFU_TARGET:.0%} (gpt_350m)", MFU_TARGET, None, "#666666")]
    return panel


def _rate(rows: Sequence[Row]) -> Panel:
    return _over_size("Tokens", "thousand tokens/s", rows, "tokens_per_s", lambda value: value / 1e3)


def _over_size(title: str, y_label: str, rows: Sequence[Row], key: str, scaled: Callable[[float], float]) -> Panel:
    """A value over the shapes, with and without a module."""
    names = shapes(rows)
    panel = Panel(title, "shape", y_label, ticks=[float(i) for i in range(len(names))], tick_names=names)
    for i, (label, wanted) in enumerate({"with module": True, "without module": False}.items()):
        found = [
            (float(names.index(str(row["shape"]))), scaled(value))
            for row in rows
            if row.get("shape") and bool(row.get("recycle_num_layers")) is wanted
            if (value := number(row.get(key))) is not None
        ]
        panel.series.append(Series(label, [x for x, _ in found], [y for _, y in found], colour=PALETTE[i]))
    return panel


def _run(train: Mapping[str, Any]) -> list[Panel]:
    curves = train.get("curves", {})

    def curve(label: str, tag: str, place: int, style: Style = "both", square: bool = False) -> Series:
        points = [(x, y) for x, y in curves.get(tag, []) if number(y) is not None]
        return Series(
            label, [x for x, _ in points], [y for _, y in points], style=style, colour=PALETTE[place],
            marker="square" if square else "circle",
        )  # fmt: skip

    loss = Panel("Training loss", "training tokens seen", "nats per token")
    loss.series = [
        curve("backbone: next token", "train/loss_backbone", 0, "line"),
        curve("module: the token after it", "train/loss_recycle", 1, "line"),
    ]
    shares = Panel("How often the module is right", "training tokens seen", "share of recycled tokens")
    shares.series = [
        curve("agreement, held-out text", "val/agreement", 0),
        curve("acceptance, its own text", "decode/acceptance", 1, square=True),
    ]
    speeds = Panel("Speed, as the monitor saw it", "training tokens seen", SPEEDUP)
    speeds.series = [
        curve("alternating", "decode/speedup_alternating", 0),
        curve("verified", "decode/speedup_verified", 1, square=True),
    ]
    return [loss, shares, speeds]


def _kept(rows: Sequence[Row]) -> Panel:
    panel = Panel("How often the module is right", RECYCLED, "share of recycled tokens")
    for i, (strategy, key) in enumerate({"alternating": "agreement", "verified": "acceptance"}.items()):
        own = [row for row in rows if row.get("strategy") == strategy and row.get("batch") == 1]
        panel.series.append(_line(f"{key} ({strategy})", own, "num_recycled", key, i, square=bool(i)))
    return _ticks(panel)
