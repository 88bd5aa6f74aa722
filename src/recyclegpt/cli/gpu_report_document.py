"""`report.json` of a GPU report, put together from the records of its calls and the folder of its run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recyclegpt.cli.gpu_report_calls import COMPLETE, FAILED, SKIPPED, STOPPED, Record
from recyclegpt.cli.run_folder import RESULT
from recyclegpt.reporting.curves import read_scalars
from recyclegpt.reporting.gpu_report import FORMAT, KIND
from recyclegpt.reporting.gpu_targets import gpu_targets

NOT_RUN = "not run"
CURVES = ("train/loss_backbone", "train/loss_recycle", "val/agreement", "val/ppl_backbone", "val/ppl_recycle")
DECODED = ("decode/agreement", "decode/acceptance", "decode/speedup_alternating", "decode/speedup_verified")
MOST_POINTS = 200
"""Of a curve; more cannot be told apart in a figure."""
PROFILE_LINES = 8


def make_document(
    parts: Iterable[str], records: Mapping[tuple[str, str], Record], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The document.

    Args:
        parts: names of all parts, in order.
        records: by part and name; of this code and these settings.
        about: the last start: command, budget, version, git state, whether it is a smoke run.
    """
    held = {part: _part(part, [record for record in records.values() if record.part == part]) for part in parts}
    machine = records.get(("environment", "machine"))
    doctor = records.get(("environment", "doctor"))
    problems = [
        finding
        for finding in ((doctor.document or {}) if doctor else {}).get("findings", [])
        if finding.get("verdict") == "problem"
    ]
    return {
        "format": FORMAT,
        "kind": KIND,
        **about,
        "environment": {**((machine.document or {}) if machine else {}), "problems": problems},
        "parts": held,
        "targets": [target.as_row() for target in gpu_targets(held)],
    }


def _part(name: str, records: Sequence[Record]) -> dict[str, Any]:
    held: dict[str, Any] = {
        "status": _status(records),
        "seconds": sum(record.seconds for record in records),
        "calls": [
            {key: getattr(record, key) for key in ("name", "status", "seconds", "command", "error")}
            for record in records
        ],
    }
    complete = [record for record in records if record.status == COMPLETE and record.document is not None]
    if name in ("checks", "kernels", "decode", "training", "trained"):
        held["rows"] = [_marked(row, record) for record in complete for row in _rows(record)]
        held["stages"] = [
            {**_marked({}, record), "decoder": decoder, **seconds}
            for record in complete
            for decoder, seconds in ((record.document or {}).get("stages") or {}).items()
        ]
        told = [note for record in complete for note in (record.document or {}).get("notes", [])]
        held["notes"] = told + [record.facts["note"] for record in records if record.facts.get("note")]
    if name == "training":
        held["profiles"] = _profiles(complete)
    if name == "train":
        held |= _run(records)
    if name == "trained":
        held["metrics"] = next(((r.document or {}).get("metrics") for r in complete if r.name == "evaluate"), None)
    return held


def _status(records: Sequence[Record]) -> str:
    if not records:
        return NOT_RUN
    found = {record.status for record in records}
    if found == {COMPLETE}:
        return COMPLETE
    if COMPLETE in found:
        return "partial"
    return next(status for status in (STOPPED, FAILED, SKIPPED) if status in found)


def _rows(record: Record) -> list[dict[str, Any]]:
    document = record.document or {}
    rows = document.get("rows")
    if not isinstance(rows, list):  # what `evaluate` calls rows is their number
        return []
    # A training benchmark says once what the module adds; it belongs to the row that has one.
    added = document.get("module")
    return [row | added if added and row.get("variant") == "module" else row for row in rows]


def _marked(row: Mapping[str, Any], record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.facts.items() if key in ("shape", "call")} | dict(row)


def _run(records: Sequence[Record]) -> dict[str, Any]:
    """What the folder of the run holds, small enough to be kept."""
    by_name = {record.name: record for record in records}
    corpus, run = by_name.get("corpus"), by_name.get("run")
    found: dict[str, Any] = {"corpus": corpus.document if corpus else None}
    if run is None or "folder" not in run.facts:
        return found
    folder = Path(run.facts["folder"])
    result = _read_json(folder / RESULT)
    decoding = _read_lines(folder / "decoding.jsonl")
    found |= {"result": result, "decoding": decoding, "notes": [run.facts["note"]]}
    train = (result or {}).get("train") or {}
    spent = [row["decode/seconds"] for row in decoding if row.get("decode/seconds") is not None]
    # Of an epoch whose decoding failed nothing is known.
    if spent and len(spent) == len(decoding) and train.get("seconds"):
        found["monitor_share"] = sum(spent) / train["seconds"]
        found["notes"].append(
            f"The monitor decoded {len(spent)} times, {sum(spent) / len(spent):.1f} s each; it makes its decoder and "
            "captures its graphs anew every time, so short epochs pay more for it."
        )
    if train.get("steps"):
        found["curves"] = _curves(folder, decoding, train["tokens"] / train["steps"])
    return found


def _curves(
    folder: Path, decoding: Sequence[Mapping[str, Any]], tokens_per_step: float
) -> dict[str, list[list[float]]]:
    """By tag: tokens seen, and value. Lightning writes at step N - 1 what the N-th step found."""
    logged = read_scalars(folder / "tensorboard", CURVES)
    curves = {
        tag: [[(step + 1) * tokens_per_step, value] for step, value in sorted(steps.items())]
        for tag, steps in logged.items()
    }
    for tag in DECODED:
        curves[tag] = [[row["step"] * tokens_per_step, row[tag]] for row in decoding if row.get(tag) is not None]
    return {tag: thinned(points) for tag, points in curves.items() if points}


def thinned(points: list[list[float]]) -> list[list[float]]:
    """At most `MOST_POINTS` of them, each the mean of its neighbours."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [[sum(point[axis] for point in group) / len(group) for axis in (0, 1)] for group in groups]


def _profiles(records: Sequence[Record]) -> dict[str, list[list[str]]]:
    """Where a training step's time goes, from the profiler's tables beside a benchmark: header, then rows."""
    found = {}
    for record in records:
        for path in sorted(Path(str(record.facts.get("folder", ""))).glob("profile_*.txt")):
            if table := profile_table(path.read_text(encoding="utf-8")):
                found[f"{record.name}, {path.stem.removeprefix('profile_')}"] = table
    return found


def profile_table(text: str) -> list[list[str]]:
    """Of a table of `torch.profiler` its most expensive operations: header and rows of name, time, share and calls."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip(" -")]
    header = next((cells for cells in lines if cells[0] == "Name"), None)
    if header is None:
        return []
    device = "CUDA" if "Self CUDA" in header else "CPU"
    columns = [header.index(name) for name in ("Name", f"Self {device}", f"Self {device} %", "# of Calls")]
    rows = [[cells[column] for column in columns] for cells in lines if len(cells) == len(header) and cells != header]
    return [["operation", f"{device} time", "share", "calls"], *rows[:PROFILE_LINES]]


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Of a file that a killed run may have left with half a line."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
