"""From run folders to a report: tables, figures, `report.md` and `report.html`. Reads files only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recyclegpt.reporting.figure import Figure
from recyclegpt.reporting.figures import QUALITY_OF, make_figures, pareto_points
from recyclegpt.reporting.page import Block, Bullets, Heading, Paragraph, Picture, Table
from recyclegpt.reporting.pages import WrittenFiles, write_pages
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
from recyclegpt.reporting.tables import SUMMARY, run_rows, summary_cells, summary_rows

MOST_LISTED = 20
EFFECTS = (
    "val/ppl_backbone",
    "val/ppl_recycle",
    "val/ppl_alternating",
    "val/agreement",
    "decode/acceptance",
    "decode/speedup_alternating",
    "decode/speedup_verified",
)


@dataclass
class Report(WrittenFiles):
    """What was written, and what it came from."""

    runs: Runs
    settings: list[Setting]


def write_report(folders: Sequence[Path | str], output: Path | str, title: str | None = None) -> Report:
    """Read the runs in or below `folders` and write their report into `output`.

    Raises:
        ConfigError: no run is found.
        OSError: `output` cannot be written.
    """
    runs = read_runs(*folders)
    settings = summarise(runs)
    output = Path(output).expanduser()
    title = title or f"Report on {', '.join(Path(folder).resolve().name for folder in folders)}"
    figures = make_figures(runs, settings)
    tables = {"results.csv": run_rows(runs), "summary.csv": summary_rows(settings)}
    written = write_pages(output, title, make_blocks(runs, settings, figures), figures, tables)
    return Report(written.files, written.not_drawn, runs, settings)


def make_blocks(runs: Runs, settings: Sequence[Setting], figures: Sequence[Figure]) -> list[Block]:
    """The report's sections, in order."""
    blocks: list[Block] = [*_what_was_run(runs, repeated(runs, settings))]
    if settings:
        blocks += [
            Heading("Results"),
            Paragraph("Mean over seeds, ± standard deviation."),
            Table(*summary_cells(settings)),
        ]
    by_name = {figure.name: figure for figure in figures}
    if "pareto" in by_name:
        blocks += [Heading("Speed against quality"), *_pareto(settings), Picture(by_name["pareto"])]
    if costs := cost_rows(settings):
        told = (
            "Perplexity of the backbone less that of the control of the same seed, mean over seeds ± standard "
            "deviation. Seeds change data order and first weights for all alike, so this is sharper than a difference "
            "of means."
        )
        blocks += [Heading("What the module costs the backbone"), Paragraph(told), Table(*costs)]
    if effects := effect_rows(runs, settings):
        header = ("setting", "metric", "from", "to", "largest difference", "seed spread", "verdict")
        told = "The largest difference of means along a setting, beside the standard deviation between seeds (pooled)."
        blocks += [Heading("Effects against the spread of seeds"), Paragraph(told), Table(header, effects)]
    others = [figure for figure in figures if figure.name != "pareto"]
    if others:
        blocks += [Heading("Curves"), *(Picture(figure) for figure in others)]
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
        warnings.append(f"{len(repeats)} runs repeat setting and seed of another and are not counted: {names}.")
    unread = [run.name for run in complete if not run.config_read]
    if unread:
        warnings.append(f"{len(unread)} runs have no readable config and belong to no setting: {', '.join(unread)}.")
    contended = [run for run in complete if run.contended]
    replaced = [run for run in contended if run.bench]
    if contended:
        warnings.append(
            f"{len(contended)} runs were contended (other programs used the processors), so the speeds measured while "
            f"they trained are left out; of {len(replaced)} a later benchmark gives the decoding speeds."
        )
    return [Heading("What was run"), Bullets([*items, *warnings])]


def _commit(run: Run) -> str:
    git = run.provenance.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return "unknown"
    changes = " with changes" if git.get("diff_sha256") else " with untracked files" if git.get("dirty") else ""
    return f"{str(git['commit'])[:12]}{changes}"


def _pareto(settings: Sequence[Setting]) -> list[Block]:
    points = pareto_points(settings)
    front = set(pareto_front([(speedup, perplexity) for *_, speedup, perplexity in points]))
    on_front = [
        f"{s.label} {decoder} ({x:.2f}x at {y:.2f})" for i, (s, decoder, x, y) in enumerate(points) if i in front
    ]
    beaten = [f"{s.label} {decoder}" for i, (s, decoder, _, _) in enumerate(points) if i not in front]
    text = f"No other choice is both faster and better than: {'; '.join(on_front)}."
    text += f" Beaten: {'; '.join(beaten)}." if beaten else ""
    slower = [s.label for s in settings if s.control is None and _slower(s)]
    text += f" Slower than plain decoding with every decoder: {'; '.join(slower)}." if slower else ""
    return [Paragraph(text)]


def _slower(setting: Setting) -> bool:
    speedups = [setting.mean(f"decode/speedup_{decoder}") for decoder in QUALITY_OF]
    known = [speedup for speedup in speedups if speedup is not None]
    return bool(known) and max(known) < 1


def cost_rows(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: each setting's backbone against every control, paired by seed; None without a control."""
    metric = "val/ppl_backbone"
    of = {id(s): {run.seed: y for run in s.runs if (y := run.value(metric)) is not None} for s in settings}
    controls = [setting for setting in settings if setting.control is not None and of[id(setting)]]
    with_module = [setting for setting in settings if setting.control is None]
    if not controls or not with_module:
        return None
    rows = []
    for setting in with_module:
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
            blocks += [Heading(name), Bullets([*items[:MOST_LISTED], *more])]
    return blocks
