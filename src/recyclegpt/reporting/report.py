"""From run folders to a report: tables, figures, `report.md` and `report.html`. Reads files only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recyclegpt.reporting.draw import draw_html, draw_png, plotly_script
from recyclegpt.reporting.figure import Figure
from recyclegpt.reporting.figures import QUALITY_OF, make_figures, pareto_points, with_module
from recyclegpt.reporting.page import Block, Heading, Table, to_html, to_markdown
from recyclegpt.reporting.run_folders import read_runs
from recyclegpt.reporting.runs import COMPLETED, FAILED, UNFINISHED, UNREADABLE, Run, Runs
from recyclegpt.reporting.settings import (
    Setting,
    lines_along,
    pareto_front,
    pooled_spread,
    repeated,
    summarise,
    swept_keys,
)
from recyclegpt.reporting.tables import SUMMARY, run_rows, summary_cells, summary_rows, write_csv

MOST_LISTED = 20
EFFECTS = tuple(SUMMARY)[:7]
"""Quality, acceptance rate and speedup."""


@dataclass
class Report:
    """What was written, and from what."""

    runs: Runs
    settings: list[Setting]
    files: list[Path]
    not_drawn: list[str]
    """Missing packages, without which figures or the interactive page were not written."""


def write_report(folders: Sequence[Path | str], output: Path | str, title: str | None = None) -> Report:
    """Write `results.csv`, `summary.csv`, `figures/*.png`, `report.md` and `report.html` of the runs below `folders`.

    Raises:
        ConfigError: no run is found.
        OSError: `output` cannot be written.
    """
    runs = read_runs(*folders)
    settings = summarise(runs)
    output = Path(output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    title = title or f"Report on {', '.join(Path(folder).resolve().name for folder in folders)}"
    figures = make_figures(runs, settings)
    report = Report(runs, settings, [output / "results.csv", output / "summary.csv"], [])
    write_csv(report.files[0], run_rows(runs))
    write_csv(report.files[1], summary_rows(settings))
    drawn: dict[str, str] = {}
    try:
        for figure in figures:
            drawn[figure.name] = f"figures/{figure.name}.png"
            draw_png(figure, output / drawn[figure.name])
    except ImportError:
        drawn.clear()
        report.not_drawn.append("matplotlib")
    blocks = make_blocks(runs, settings, figures)
    pages = {"report.md": to_markdown(title, blocks, lambda figure: drawn.get(figure.name))}
    try:
        pages["report.html"] = to_html(title, blocks, plotly_script() if figures else "", draw_html)
    except ImportError:
        report.not_drawn.append("plotly")
    for name, text in pages.items():
        (output / name).write_text(text, encoding="utf-8")
    report.files += [output / name for name in (*drawn.values(), *pages)]
    return report


def make_blocks(runs: Runs, settings: Sequence[Setting], figures: Sequence[Figure]) -> list[Block]:
    """The report's sections, in order."""
    blocks: list[Block] = [*_what_was_run(runs, repeated(runs, settings))]
    if settings:
        blocks += [Heading("Results"), "Mean over seeds, ± standard deviation.", Table(*summary_cells(settings))]
    if figures and figures[0].name == "pareto":
        blocks += [Heading("Speed against quality"), _pareto(settings), figures[0]]
    if costs := cost_rows(settings):
        text = (
            "Perplexity of the backbone minus that of the control with the same seed, mean over seeds ± standard "
            "deviation. A seed fixes data order and initial weights for all of them, so this is sharper than a "
            "difference of means."
        )
        blocks += [Heading("What the module costs the backbone"), text, Table(*costs)]
    if effects := effect_rows(runs, settings):
        header = ("setting", "metric", "from", "to", "largest difference", "seed spread", "verdict")
        text = "The largest difference of means along a setting, next to the pooled standard deviation between seeds."
        blocks += [Heading("Effects compared with the spread of seeds"), text, Table(header, effects)]
    if others := [figure for figure in figures if figure.name != "pareto"]:
        blocks += [Heading("Curves"), *others]
    return blocks + _what_is_missing(runs)


def _what_was_run(runs: Runs, repeats: Sequence[Run]) -> list[Block]:
    counts = [f"{len(runs.of_status(s))} {s}" for s in (COMPLETED, FAILED, UNFINISHED, UNREADABLE) if runs.of_status(s)]
    counts += [f"{len(runs.missing)} missing"] if runs.missing else []
    complete = runs.of_status(COMPLETED)
    items = [f"Runs: {', '.join(counts)}."]
    facts = {
        "Trained on": {
            f"{run.hardware.get('device')}, {run.hardware.get('threads')} threads" for run in complete if run.hardware
        },
        "Benchmarked on": {
            f"{run.bench_hardware.get('device')}, {run.bench_hardware.get('threads')} threads"
            for run in complete
            if run.bench
        },
        "Commit": {_commit(run) for run in complete},
        "Data fingerprint": {str(run.provenance.get("data_fingerprint"))[:16] for run in complete},
        "Tokens trained on": {f"{tokens:,.0f}" for run in complete if (tokens := run.train.get("tokens"))},
    }
    for name, values in facts.items():
        if values:
            items.append(f"{name}: {'; '.join(sorted(values))}.")
    by_seed: dict[int | None, set[str]] = {}
    for run in complete:
        by_seed.setdefault(run.seed, set()).add(str(run.provenance.get("data_fingerprint")))
    # The seed orders the data, and so is part of the fingerprint.
    differs = {name: len(values) > 1 for name, values in facts.items()}
    differs["Data fingerprint"] = any(len(values) > 1 for values in by_seed.values())
    warnings = [f"Runs differ in {name.lower()}: compare them with care." for name in facts if differs[name]]
    if repeats:
        names = ", ".join(run.name for run in repeats[:MOST_LISTED])
        warnings.append(f"{len(repeats)} runs repeat the setting and seed of another and are not counted: {names}.")
    unread = [run.name for run in complete if not run.config_read]
    if unread:
        warnings.append(f"{len(unread)} runs have no readable config and belong to no setting: {', '.join(unread)}.")
    contended = [run for run in complete if run.contended]
    replaced = [run for run in contended if run.bench]
    if contended:
        warnings.append(
            f"{len(contended)} runs were contended (other programs used the processors), so speeds measured while they "
            f"trained are left out; {len(replaced)} of them have decoding speeds from a later benchmark."
        )
    return [Heading("What was run"), [*items, *warnings]]


def _commit(run: Run) -> str:
    git = run.provenance.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return "unknown"
    changes = " with changes" if git.get("diff_sha256") else " with untracked files" if git.get("dirty") else ""
    return f"{str(git['commit'])[:12]}{changes}"


def _pareto(settings: Sequence[Setting]) -> str:
    points = pareto_points(settings)
    front = set(pareto_front([(speedup, perplexity) for *_, speedup, perplexity in points]))
    on_front = [
        f"{s.label} {decoder} ({x:.2f}x at {y:.2f})" for i, (s, decoder, x, y) in enumerate(points) if i in front
    ]
    beaten = [f"{s.label} {decoder}" for i, (s, decoder, _, _) in enumerate(points) if i not in front]
    text = f"No other choice is both faster and better than: {'; '.join(on_front)}."
    text += f" Beaten: {'; '.join(beaten)}." if beaten else ""
    speeds = {
        s.label: [x for name in QUALITY_OF if (x := s.mean(f"decode/speedup_{name}")) is not None]
        for s in with_module(settings)
    }
    slower = [label for label, speedups in speeds.items() if speedups and max(speedups) < 1]
    return text + (f" Slower than autoregressive decoding with every decoder: {'; '.join(slower)}." if slower else "")


def cost_rows(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: each setting's backbone against every control, paired by seed; None without a control."""
    metric = "val/ppl_backbone"
    of = {id(s): {run.seed: y for run in s.runs if (y := run.value(metric)) is not None} for s in settings}
    controls = [setting for setting in settings if setting.control is not None and of[id(setting)]]
    if not controls or not with_module(settings):
        return None
    rows = []
    for setting in with_module(settings):
        row = [setting.label]
        for control in controls:
            mine, theirs = of[id(setting)], of[id(control)]
            differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
            spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
            row.append(f"{statistics.fmean(differences):+.2f}{spread}" if differences else "-")
        rows.append(row)
    return ["setting", *(f"against {control.label}" for control in controls)], rows


def effect_rows(runs: Sequence[Run], settings: Sequence[Setting]) -> list[list[str]]:
    """For each swept number and metric: how far means lie apart, and whether that exceeds twice the seeds' spread."""
    rows = []
    for key in swept_keys(runs):
        for fixed, members in lines_along(settings, key):
            for metric in EFFECTS:
                means = [(mean, setting) for setting in members if (mean := setting.mean(metric)) is not None]
                if len(means) < 2:
                    continue
                low, high = min(means, key=lambda m: m[0]), max(means, key=lambda m: m[0])
                difference, spread = high[0] - low[0], pooled_spread(settings, metric)
                if spread is None:
                    verdict = "one seed each: cannot tell"
                elif difference > 2 * spread:
                    verdict = "larger than twice the seed spread"
                else:
                    verdict = "within the seed spread" if difference <= spread else "not clearly above the seed spread"
                name = key if not fixed or len(lines_along(settings, key)) == 1 else f"{key} ({fixed})"
                rows.append(
                    [
                        name,
                        SUMMARY.get(metric, metric),
                        f"{low[0]:.4g} at {low[1].values[key]}",
                        f"{high[0]:.4g} at {high[1].values[key]}",
                        f"{difference:.3g}",
                        "-" if spread is None else f"{spread:.2g}",
                        verdict,
                    ]
                )
    return rows


def _what_is_missing(runs: Runs) -> list[Block]:
    blocks: list[Block] = []
    lists = {
        "Failed": [f"{run.name}: {run.error or 'no reason given'}" for run in runs.of_status(FAILED)],
        "Unfinished": [run.name for run in runs.of_status(UNFINISHED)],
        "Missing": [f"{' '.join(job.overrides)}" for job in runs.missing],
        "Files that could not be used": [f"{problem.path}: {problem.reason}" for problem in runs.problems],
    }
    for name, items in lists.items():
        if items:
            more = [f"and {len(items) - MOST_LISTED} more"] if len(items) > MOST_LISTED else []
            blocks += [Heading(name), [*items[:MOST_LISTED], *more]]
    return blocks
