"""`report.json` of `recyclegpt gpu-report` as tables, figures and pages. Reads that file alone; a copy will do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recyclegpt.errors import ConfigError
from recyclegpt.reporting.gpu_figures import gpu_figures
from recyclegpt.reporting.gpu_targets import Target, gpu_targets
from recyclegpt.reporting.page import Block, Bullets, Heading, Paragraph, Picture, Table
from recyclegpt.reporting.pages import Written, write_pages
from recyclegpt.reporting.plain_values import UNREADABLE, Plain, number, plain, read_json_object

FILE_NAME = "report.json"
KIND = "gpu-report"
FORMAT = 1
DECODE = {
    "shape": "shape",
    "strategy": "decoder",
    "recycle_num_layers": "depth",
    "num_recycled": "m",
    "batch": "batch",
    "tokens_per_s": "tokens/s",
    "speedup": "speedup",
    "ceiling_measured": "ceiling",
    "ceiling_bytes": "by bytes",
    "acceptance": "kept",
    "rho": "rho",
    "c": "c",
    "bandwidth_utilisation": "bandwidth",
}
TRAINING = {
    "shape": "shape",
    "recycle_num_layers": "depth",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU",
    "step_s": "step s",
    "peak_memory_bytes": "peak GB",
    "flops_share": "module: FLOPs",
    "time_share": "module: time",
}
KERNELS = {
    "kernel": "kernel",
    "outputs": "outputs",
    "inputs": "inputs",
    "rows": "rows",
    "fetch": "fetch",
    "overlap": "overlap",
    "seconds": "microseconds",
    "of_copy": "of a copy",
}
CHECKS = {"check": "check", "error": "error", "allowed": "allowed", "passed": "passed", "why": "why not"}
SHARES = ("of_copy", "acceptance", "bandwidth_utilisation", "mfu", "flops_share", "time_share")
DISTRUST = "Do not trust a speed that rests on them."
SMOKE = "A smoke run: tiny shapes that carry the large ones' names. No number here means anything."


def is_gpu_report(folder: Path) -> bool:
    """Whether a folder holds what `recyclegpt gpu-report` has measured."""
    try:
        return read_json_object(folder / FILE_NAME).get("kind") == KIND
    except UNREADABLE:
        return False


def read_gpu_report(path: Path) -> dict[str, Any]:
    """The document, if it is one.

    Raises:
        ConfigError: the file cannot be read, is of another kind, or of a later format.
    """
    remedy = "give the folder that `recyclegpt gpu-report` wrote into"
    try:
        document = read_json_object(path)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read ({error}); {remedy}") from error
    if document.get("kind") != KIND or not isinstance(document.get("parts"), dict):
        raise ConfigError(f"{path}: is no report of a GPU; {remedy}")
    if document.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: has format {document.get('format')}, this version reads {FORMAT}; update recyclegpt"
        )
    return document


def write_gpu_report(folder: Path, output: Path, title: str | None = None) -> Written:
    """Write tables, figures and pages of the report in `folder`; elsewhere than there, its `report.json` as well.

    Raises:
        ConfigError: there is no such report.
        OSError: `output` cannot be written.
    """
    document = read_gpu_report(folder / FILE_NAME)
    parts = document["parts"]
    figures = gpu_figures(parts)
    targets = gpu_targets(parts)
    tables: dict[str, Sequence[dict[str, Plain]]] = {"targets.csv": [_cells(target.as_row()) for target in targets]}
    for part in ("checks", "decode", "training", "trained", "kernels"):
        if rows := parts.get(part, {}).get("rows"):
            tables[f"{part}.csv"] = same_columns(rows)
    title = title or f"GPU report: {device_of(document)}"
    written = write_pages(output, title, make_blocks(document, targets), figures, tables)
    if output.resolve() != folder.resolve():
        copy = output / FILE_NAME
        copy.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written.files.append(copy)
    return written


def device_of(document: Mapping[str, Any]) -> str:
    """Name of what was measured."""
    return str(document.get("environment", {}).get("device") or "device not known")


def commit_of(document: Mapping[str, Any]) -> str:
    """The commit, and whether files differed from it."""
    git = document.get("git") or {}
    if not git.get("commit"):
        return "unknown"
    return str(git["commit"])[:12] + (" with changes" if git.get("dirty") else "")


def commands_of(document: Mapping[str, Any]) -> list[str]:
    """All starts that have measured what the report holds."""
    return [str(command) for command in document.get("commands") or [document.get("command")]]


def distrust(parts: Mapping[str, Any]) -> str:
    """Which fast paths do not compute what their slow twins compute, or that nobody has looked; empty where all do."""
    held = parts.get("checks", {})
    failed = [str(row.get("check")) for row in held.get("rows", []) if not row.get("passed")]
    if failed:
        return f"Fast paths that are not right on this device: {', '.join(failed)}. {DISTRUST}"
    return "" if held.get("status") == "complete" else f"The fast paths were not checked on this device. {DISTRUST}"


def same_columns(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Plain]]:
    """Rows for a CSV file: all have the columns of all, lists and dicts as JSON."""
    rows = list(rows)
    columns = dict.fromkeys(key for row in rows for key in row)
    return [_cells({key: row.get(key) for key in columns}) for row in rows]


def _cells(row: Mapping[str, Any]) -> dict[str, Plain]:
    return {key: plain(value) for key, value in row.items()}


def make_blocks(document: Mapping[str, Any], targets: Sequence[Target]) -> list[Block]:
    """The report's sections, in order."""
    parts = document["parts"]
    figures = {figure.name: figure for figure in gpu_figures(parts)}
    blocks: list[Block] = [Paragraph(SMOKE)] if document.get("smoke") else []
    blocks += [Heading("What was run"), Bullets(_facts(document)), Table(*_part_table(parts))]
    if failures := _failures(parts):
        blocks += [Paragraph("What did not come to its end, and why:"), Bullets(failures)]
    if warning := distrust(parts):
        blocks.append(Paragraph(warning))
    blocks += [Heading("Targets"), Table(*target_table(targets))]
    sections = {
        "Checks": ("checks", (), CHECKS),
        "Decoding": ("decode", ("decode_num_recycled", "bandwidth", "batch"), DECODE),
        "Training": ("training", ("training",), TRAINING),
        "The run": ("train", ("run",), {}),
        "The trained model": ("trained", ("trained_num_recycled",), DECODE),
        "Kernels": ("kernels", (), KERNELS),
    }
    for title, (part, names, columns) in sections.items():
        held = parts.get(part, {})
        own: list[Block] = [Picture(figures[name]) for name in names if name in figures]
        if items := _said_of(held):
            own.append(Bullets(items))
        if rows := held.get("rows"):
            own.append(Table(*row_table(rows, columns)))
        own += _where_time_goes(held)
        blocks += [Heading(title), *own] if own else []
    return blocks


def _facts(document: Mapping[str, Any]) -> list[str]:
    environment = document.get("environment", {})
    versions = ", ".join(
        f"{name} {environment[key]}"
        for name, key in {
            "driver": "driver", "CUDA": "cuda", "torch": "torch", "triton": "triton",
            "transformers": "transformers", "Python": "python",
        }.items()
        if environment.get(key)
    )  # fmt: skip
    facts = [f"Device: {device_of(document)}" + (f" ({versions})." if versions else ".")]
    rates = {
        "copy": (number(environment.get("copy_bytes_per_s")), 1e12, "TB/s, read and written both counted"),
        "bf16 matrix product": (number(environment.get("matmul_flops_per_s")), 1e12, "TFLOP/s"),
    }
    facts += [f"Measured {name}: {rate / unit:.3g} {text}." for name, (rate, unit, text) in rates.items() if rate]
    facts += [f"Commit: {commit_of(document)}.", f"Commands: {'; '.join(commands_of(document))}."]
    seconds = sum(number(held.get("seconds")) or 0 for held in document["parts"].values())
    return [*facts, f"All measurements together took {seconds:.0f} s."]


def _part_table(parts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, held in parts.items():
        calls = held.get("calls", [])
        done = sum(call.get("status") == "complete" for call in calls)
        rows.append(
            [name, str(held.get("status")), f"{number(held.get('seconds')) or 0:.0f}", f"{done} of {len(calls)}"]
        )
    return ["part", "status", "seconds", "calls complete"], rows


def _failures(parts: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}, {call['name']}: {call['status']}: {call.get('error') or 'no reason given'}"
        for name, held in parts.items()
        for call in held.get("calls", [])
        if call.get("status") != "complete"
    ]


def target_table(targets: Iterable[Target]) -> tuple[list[str], list[list[str]]]:
    """Header and cells."""
    rows = [
        [
            target.name,
            target.shown(target.value),
            f"{'at least' if target.at == 'least' else 'at most'} {target.shown(target.target)}",
            target.verdict,
            target.source,
        ]
        for target in targets
    ]
    return ["target", "measured", "wanted", "verdict", "measured on"], rows


def row_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the columns that hold anything."""
    held = {key: name for key, name in columns.items() if any(row.get(key) is not None for row in rows)}
    return list(held.values()), [[_shown(key, row.get(key)) for key in held] for row in rows]


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    known = number(value)
    if known is None:
        return str(value)
    if key in SHARES:
        return f"{known:.1%}"
    if key == "seconds":
        return f"{known * 1e6:.1f}"
    if key == "peak_memory_bytes":
        return f"{known / 1e9:.1f}"
    return f"{known:,.0f}" if isinstance(value, int) or abs(known) >= 1000 else f"{known:.3g}"


def _said_of(held: Mapping[str, Any]) -> list[str]:
    """What a part found besides its rows."""
    items = []
    result = held.get("result") or {}
    if train := result.get("train"):
        items.append(
            f"{train.get('tokens') or 0:,.0f} tokens in {train.get('steps')} steps, {train.get('seconds') or 0:.0f} s "
            f"at {train.get('tokens_per_s') or 0:,.0f} tokens/s."
        )
    if corpus := held.get("corpus"):
        packages = ", ".join(corpus.get("held_out") or [])
        items.append(
            f"Corpus: {corpus.get('kind')}, {corpus.get('train_tokens') or 0:,} training tokens, vocabulary "
            f"{corpus.get('vocab_size') or 0:,}"
            + (f". Held out, and never trained on: {packages}." if packages else ".")
        )
    if (share := number(held.get("monitor_share"))) is not None:
        items.append(f"The monitor took {share:.1%} of the time of training.")
    if metrics := held.get("metrics"):
        items.append("; ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in metrics.items() if value))
    items += held.get("notes", [])
    return items


def _where_time_goes(held: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if stages := held.get("stages"):
        keys = [key for key in stages[0] if key not in ("shape", "call", "decoder")]
        rows = [
            [
                f"{row.get('shape') or ''} {row['decoder']}".strip(),
                *(f"{(number(row[key]) or 0) * 1e6:.0f}" for key in keys),
            ]
            for row in stages
        ]
        blocks += [Paragraph("Where the time of a cycle goes:"), Table(["microseconds of a cycle", *keys], rows)]
    for name, (header, *rows) in (held.get("profiles") or {}).items():
        blocks += [Paragraph(f"Where the time of a step goes ({name}):"), Table(header, rows)]
    return blocks
