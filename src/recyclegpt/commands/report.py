"""`recyclegpt report FOLDER`: what a sweep came to, as tables, figures and pages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recyclegpt.console import print_table
from recyclegpt.errors import ConfigError
from recyclegpt.reporting import Report, write_report
from recyclegpt.reporting.tables import summary_cells


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="recyclegpt report",
        description="Read run folders and write results.csv, summary.csv, figures/*.png, report.md and report.html.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a sweep, a run, or a folder above them")
    parser.add_argument("--output", help="where to write; default: the first FOLDER itself")
    parser.add_argument("--title", help="heading of the report")
    arguments = parser.parse_args(list(argv))
    output = Path(arguments.output or arguments.folders[0]).expanduser()
    try:
        written = _report_on_runs(arguments.folders, output, arguments.title)
    except OSError as error:
        raise ConfigError(f"--output: {output} cannot be written ({error})") from error
    for path in written.files:
        print(path)
    if written.not_drawn:
        names = " and ".join(dict.fromkeys(written.not_drawn))
        print(f"{names} not installed, so figures are missing: pip install 'recyclegpt[report]'", file=sys.stderr)
    return 0


def _report_on_runs(folders: Sequence[str], output: Path, title: str | None) -> Report:
    report = write_report(folders, output, title)
    header, rows = summary_cells(report.settings)
    if rows:
        print_table(rows, header)
        print()
    left = {
        "failed": len(report.runs.of_status("failed")),
        "unfinished": len(report.runs.of_status("unfinished")),
        "missing": len(report.runs.missing),
        "unreadable files": len(report.runs.problems),
    }
    if any(left.values()):
        print("; ".join(f"{count} {name}" for name, count in left.items() if count) + ": listed in the report")
    return report
