"""From run folders to a report: tables, figures, `report.md` and `report.html`. Reads files only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recyclegpt.reporting.figure import Figure, draw_html, draw_png, plotly_script
from recyclegpt.reporting.figures import make_figures, pareto_points
from recyclegpt.reporting.page import Block, bullets, escaped, table, to_html, to_markdown
from recyclegpt.reporting.run_folders import COMPLETED, FAILED, UNFINISHED, Run, Runs, read_runs
from recyclegpt.reporting.settings import Setting, pareto_front, summarise
from recyclegpt.reporting.tables import cost_rows, effect_rows, run_rows, summary_cells, summary_rows, write_csv

MOST_LISTED = 20
COSTS = """Perplexity of the backbone minus that of the control with the same seed, mean over seeds ± standard
deviation. A seed fixes data order and initial weights for all of them, which is sharper than a difference of means."""
EFFECTS = "The largest difference of means along a setting, next to the pooled standard deviation between seeds."
EFFECT_COLUMNS = ("setting", "metric", "from", "to", "largest difference", "seed spread", "verdict")


@dataclass
class Report:
    runs: Runs
    settings: list[Setting]
    files: list[Path]
    not_drawn: list[str]
    """Missing packages, without which figures or the interactive page were not written."""


def write_report(folders: Sequence[Path | str], output: Path | str) -> Report:
    """Write `results.csv`, `summary.csv`, `figures/*.png`, `report.md` and `report.html` of the runs below `folders`.

    Raises:
        ConfigError: no run is found.
        OSError: `output` cannot be written.
    """
    runs = read_runs(*folders)
    settings = summarise(runs)
    output = Path(output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    title = f"Report on {', '.join(Path(folder).resolve().name for folder in folders)}"
    figures = make_figures(runs, settings)
    report = Report(runs, settings, [output / "results.csv", output / "summary.csv"], [])
    write_csv(report.files[0], run_rows(runs))
    write_csv(report.files[1], summary_rows(settings))
    drawn: dict[str, str] = {}
    try:
        for figure in figures:
            draw_png(figure, output / f"figures/{figure.name}.png")
            drawn[figure.name] = f"figures/{figure.name}.png"
    except ImportError:
        report.not_drawn.append("matplotlib")
    blocks = _blocks(runs, settings, figures)
    pages = {"report.md": to_markdown(title, blocks, lambda figure: drawn.get(figure.name))}
    try:
        pages["report.html"] = to_html(title, blocks, plotly_script() if figures else "", draw_html)
    except ImportError:
        report.not_drawn.append("plotly")
    for name, text in pages.items():
        (output / name).write_text(text, encoding="utf-8")
    report.files += [output / name for name in (*drawn.values(), *pages)]
    return report


def _blocks(runs: Runs, settings: Sequence[Setting], figures: Sequence[Figure]) -> list[Block]:
    blocks: list[Block] = ["## What was run", bullets(_what_was_run(runs, settings))]
    if settings:
        blocks += ["## Results", "Mean over seeds, ± standard deviation.", table(*summary_cells(settings))]
    for figure in figures:
        if figure.name == "pareto":
            blocks += ["## Speed against quality", escaped(_pareto(settings)), figure]
    if costs := cost_rows(settings):
        blocks += ["## What the module costs the backbone", COSTS, table(*costs)]
    if effects := effect_rows(runs, settings):
        blocks += ["## Effects compared with the spread of seeds", EFFECTS, table(EFFECT_COLUMNS, effects)]
    if others := [figure for figure in figures if figure.name != "pareto"]:
        blocks += ["## Curves", *others]
    lists = {
        "Failed": [f"{run.name}: {run.error or 'no reason given'}" for run in runs.of_status(FAILED)],
        "Unfinished": [run.name for run in runs.of_status(UNFINISHED)],
        "Missing": runs.missing,
        "Files that could not be used": [f"{path}: {reason}" for path, reason in runs.problems.items()],
    }
    for name, items in lists.items():
        if items:
            more = [f"and {len(items) - MOST_LISTED} more"] if len(items) > MOST_LISTED else []
            blocks += [f"## {name}", bullets([*items[:MOST_LISTED], *more])]
    return blocks


def _what_was_run(runs: Runs, settings: Sequence[Setting]) -> list[str]:
    counts = {status: len(runs.of_status(status)) for status in (COMPLETED, FAILED, UNFINISHED)}
    counts["missing"] = len(runs.missing)
    items = [f"Runs: {', '.join(f'{count} {name}' for name, count in counts.items() if count)}."]
    complete = runs.of_status(COMPLETED)
    facts = {
        "Trained on": {_machine(run.hardware) for run in complete},
        "Benchmarked on": {_machine(run.bench_hardware) for run in complete if run.bench},
        "Commit": {_commit(run) for run in complete},
        "Data fingerprint": {str(run.provenance.get("data_fingerprint"))[:16] for run in complete},
        "Tokens trained on": {f"{run.metrics.get('train.tokens') or 0:,.0f}" for run in complete},
    }
    # The seed orders the data, and so is part of the fingerprint.
    allowed = dict.fromkeys(facts, 1) | {"Data fingerprint": len({run.seed for run in complete})}
    for name, values in facts.items():
        warning = " These runs differ: compare them with care." if len(values) > allowed[name] else ""
        items += [f"{name}: {'; '.join(sorted(values))}.{warning}"] if values else []
    counted = {run.folder for setting in settings for run in setting.runs}
    if others := [run.name for run in complete if run.folder not in counted]:
        items.append(
            f"Not counted (another has the same setting and seed, or no readable config): {', '.join(others)}."
        )
    if contended := [run for run in complete if run.contended]:
        items.append(
            f"{len(contended)} runs were contended (other programs used the processors), so speeds measured while they "
            f"trained are left out; {sum(bool(run.bench) for run in contended)} have speeds from a later benchmark."
        )
    return items


def _machine(hardware: Mapping[str, Any]) -> str:
    return f"{hardware.get('device')}, {hardware.get('threads')} threads"


def _commit(run: Run) -> str:
    git = run.provenance.get("git") or {}
    changes = " with changes" if git.get("diff_sha256") else " with untracked files" if git.get("dirty") else ""
    return f"{git['commit'][:12]}{changes}" if git.get("commit") else "unknown"


def _pareto(settings: Sequence[Setting]) -> str:
    points = pareto_points(settings)
    front = set(pareto_front([(speedup, perplexity) for *_, speedup, perplexity in points]))
    named = [f"{s.label} {decoder} ({x:.2f}x at {y:.2f})" for s, decoder, x, y in points]
    on_front, beaten = ("; ".join(n for i, n in enumerate(named) if (i in front) == on) for on in (True, False))
    return f"No other choice is both faster and better than: {on_front}." + (f" Beaten: {beaten}." if beaten else "")
