"""Tables of a report: a row a run for machines, a row a setting for people."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from recyclegpt.reporting.run_folders import Plain, Run
from recyclegpt.reporting.settings import Setting, lines_along, pooled_spread, swept_keys

SUMMARY = {
    "val/ppl_backbone": "ppl backbone",
    "val/ppl_recycle": "ppl module",
    "val/ppl_alternating": "ppl alternating",
    "val/agreement": "agreement",
    "decode/acceptance": "acceptance rate",
    "decode/speedup_alternating": "speedup alternating",
    "decode/speedup_verified": "speedup verified",
    "decode/mean_accepted_length": "mean accepted length",
    "decode/ceiling_alternating": "ceiling alternating",
    "decode/tokens_per_s_autoregressive": "tokens/s autoregressive",
    "train.tokens_per_s": "tokens/s training",
    "model.num_parameters": "parameters",
}
"""Metric: its name in the table."""
EFFECTS = tuple(SUMMARY)[:7]
"""Quality, acceptance rate and speedup."""
COUNTED = "model.num_parameters"
"""Not measured, so without spread."""


def run_rows(runs: Sequence[Run]) -> list[dict[str, Plain]]:
    """A row a run with everything known about it; all rows have the same columns."""
    keys = dict.fromkeys([*swept_keys(runs), "recycle.num_layers", "model.num_layers"])
    metrics = dict.fromkeys(name for run in runs for name in run.metrics)
    hardware = dict.fromkeys(name for run in runs for name in run.hardware)
    return [
        {"run": run.name, "status": run.status, "control": run.control, "seed": run.seed}
        | {key: run.settings.get(key) for key in keys}
        | {name: run.metrics.get(name) for name in metrics}
        | {f"hardware.{name}": run.hardware.get(name) for name in hardware}
        | {"config_hash": run.config_hash, "error": run.error}
        for run in runs
    ]


def summary_rows(settings: Sequence[Setting]) -> list[dict[str, Plain]]:
    """A row a setting: number of seeds, then mean and standard deviation of each metric."""
    keys = dict.fromkeys(key for setting in settings for key in setting.values)
    rows = []
    for setting in settings:
        row: dict[str, Plain] = {"control": setting.control, **{key: setting.values.get(key) for key in keys}}
        row["seeds"] = len(setting.runs)
        for metric in SUMMARY:
            row[metric] = setting.mean(metric)
            if metric != COUNTED:
                row[f"{metric} spread"] = setting.spread(metric)
        rows.append(row)
    return rows


def summary_cells(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    """The same as header and cells for people: `35.5 ± 0.2`; empty columns are left out."""
    metrics = [metric for metric in SUMMARY if any(setting.numbers(metric) for setting in settings)]
    rows = [[s.label, str(len(s.runs)), *(_cell(s, metric) for metric in metrics)] for s in settings]
    return ["setting", "seeds", *(SUMMARY[metric] for metric in metrics)], rows


def _cell(setting: Setting, metric: str) -> str:
    mean, spread = setting.mean(metric), setting.spread(metric)
    if mean is None:
        return "-"
    form = ",.0f" if metric == COUNTED or abs(mean) >= 1000 else ".3f" if abs(mean) < 10 else ".2f"
    return f"{mean:{form}}" if spread is None or metric == COUNTED else f"{mean:{form}} ± {spread:{form}}"


def cost_rows(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: each setting's backbone against every control, paired by seed; None without a control."""
    name = "val/ppl_backbone"
    measured = [(s, {run.seed: y for run in s.runs if (y := run.metrics.get(name)) is not None}) for s in settings]
    controls = [(setting, theirs) for setting, theirs in measured if setting.control is not None and theirs]
    rows = []
    for setting, mine in measured:
        if setting.control is None:
            rows.append([setting.label])
            for _, theirs in controls:
                differences = [y - theirs[seed] for seed, y in mine.items() if seed in theirs]
                spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
                rows[-1].append(f"{statistics.fmean(differences):+.2f}{spread}" if differences else "-")
    if not controls or not rows:
        return None
    return ["setting", *(f"against {control.label}" for control, _ in controls)], rows


def effect_rows(runs: Sequence[Run], settings: Sequence[Setting]) -> list[list[str]]:
    """For each swept number and metric: how far means lie apart, and whether that exceeds twice the seeds' spread."""
    rows = []
    lines = {key: lines_along(settings, key) for key in swept_keys(runs)}
    for key, fixed, members in ((key, *line) for key, found in lines.items() for line in found):
        for metric in EFFECTS:
            means = [(mean, setting.values[key]) for setting in members if (mean := setting.mean(metric)) is not None]
            if len(means) < 2:
                continue
            low, high = min(means, key=lambda pair: pair[0]), max(means, key=lambda pair: pair[0])
            difference, spread = high[0] - low[0], pooled_spread(settings, metric)
            if spread is None:
                verdict = "one seed each: cannot tell"
            elif difference > 2 * spread:
                verdict = "larger than twice the seed spread"
            else:
                verdict = "within the seed spread" if difference <= spread else "not clearly above the seed spread"
            ends = [f"{mean:.4g} at {value}" for mean, value in (low, high)]
            name, shown = f"{key} ({fixed})" if len(lines[key]) > 1 else key, "-" if spread is None else f"{spread:.2g}"
            rows.append([name, SUMMARY[metric], *ends, f"{difference:.3g}", shown, verdict])
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Plain]]) -> None:
    """Rows with the same columns as a CSV file; None is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
