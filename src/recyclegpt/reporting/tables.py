"""Tables of a report: a row a run for machines, a row a setting for people."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from recyclegpt.reporting.plain_values import Plain
from recyclegpt.reporting.runs import Run
from recyclegpt.reporting.settings import Setting, swept_keys

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
COUNTED = ("model.num_parameters",)
"""Not measured, so without spread."""


def run_rows(runs: Sequence[Run]) -> list[dict[str, Plain]]:
    """A row a run with everything known about it; all rows have the same columns."""
    keys = swept_keys(runs)
    sections: dict[str, dict[str, None]] = {"metrics": {}, "train": {}, "hardware": {}, "model": {}}
    for run in runs:
        for name, columns in sections.items():
            columns.update(dict.fromkeys(getattr(run, name)))
    rows = []
    for run in runs:
        row: dict[str, Plain] = {"run": run.name, "status": run.status, "control": run.control, "seed": run.seed}
        row |= {key: run.settings.get(key) for key in dict.fromkeys([*keys, "recycle.num_layers", "model.num_layers"])}
        for name, columns in sections.items():
            prefix = "" if name == "metrics" else f"{name}."
            row |= {f"{prefix}{column}": getattr(run, name).get(column) for column in columns}
        rows.append(row | {"config_hash": run.config_hash, "error": run.error})
    return rows


def summary_rows(settings: Sequence[Setting]) -> list[dict[str, Plain]]:
    """A row a setting: number of seeds, then mean and standard deviation of each metric."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.values))
    rows = []
    for setting in settings:
        row: dict[str, Plain] = {"control": setting.control, **{key: setting.values.get(key) for key in keys}}
        row["seeds"] = len(setting.runs)
        for metric in SUMMARY:
            row[metric] = setting.mean(metric)
            if metric not in COUNTED:
                row[f"{metric} spread"] = setting.spread(metric)
        rows.append(row)
    return rows


def summary_cells(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    """The same as header and cells for people: `35.5 ± 0.2`; empty columns are left out."""
    metrics = [metric for metric in SUMMARY if any(setting.mean(metric) is not None for setting in settings)]
    rows = [
        [setting.label, str(len(setting.runs)), *(cell(setting, metric) for metric in metrics)] for setting in settings
    ]
    return ["setting", "seeds", *(SUMMARY[metric] for metric in metrics)], rows


def cell(setting: Setting, metric: str) -> str:
    """Mean, and spread where there is one, to as many digits as the mean needs."""
    mean, spread = setting.mean(metric), setting.spread(metric)
    if mean is None:
        return "-"
    if metric in COUNTED or abs(mean) >= 1000:
        return f"{mean:,.0f}" if spread is None or metric in COUNTED else f"{mean:,.0f} ± {spread:,.0f}"
    digits = 3 if abs(mean) < 10 else 2
    return f"{mean:.{digits}f}" if spread is None else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def write_csv(path: Path, rows: Sequence[dict[str, Plain]]) -> None:
    """Rows with the same columns as a CSV file; None is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
