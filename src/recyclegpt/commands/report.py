"""`recyclegpt report FOLDER...`: the results of runs and sweeps as tables, figures and pages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recyclegpt.console import print_table
from recyclegpt.errors import ConfigError
from recyclegpt.reporting import write_report
from recyclegpt.reporting.tables import summary_cells

SETTINGS = ("output_dir", "title")
EXAMPLES = (
    ("a sweep, written into its own folder", "outputs/sweeps/recycle_depth"),
    ("every run that was ever made, somewhere else", "outputs output_dir=report"),
    ("two sweeps in one report", "outputs/sweeps/a outputs/sweeps/b output_dir=report title='Depth and weight'"),
)


def run(argv: Sequence[str]) -> int:
    """The command."""
    given = parser().parse_args(list(argv)).given
    settings = dict(text.split("=", 1) for text in given if text.partition("=")[0] in SETTINGS)
    folders = [text for text in given if text.partition("=")[0] not in SETTINGS]
    if not folders:
        raise ConfigError("FOLDER: none is given; name a sweep, a run, or a folder above them")
    output = Path(settings.get("output_dir") or folders[0]).expanduser()
    try:
        report = write_report(folders, output, settings.get("title") or None)
    except OSError as error:
        raise ConfigError(f"output_dir: {output} cannot be written ({error})") from error
    header, rows = summary_cells(report.settings)
    if rows:
        print_table(rows, header)
        print()
    left_out = {
        "failed": len(report.runs.of_status("failed")),
        "unfinished": len(report.runs.of_status("unfinished")),
        "missing": len(report.runs.missing),
        "unreadable files": len(report.runs.problems),
    }
    if any(left_out.values()):
        print("; ".join(f"{count} {name}" for name, count in left_out.items() if count) + ": listed in the report")
    for path in report.files:
        print(path)
    if report.not_drawn:
        names = " and ".join(dict.fromkeys(report.not_drawn))
        print(f"{names} not installed, so figures are missing: pip install 'recyclegpt[report]'", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    own = argparse.ArgumentParser(
        prog="recyclegpt report",
        usage="recyclegpt report FOLDER ... [output_dir=FOLDER] [title=TEXT]",
        description="Reads run folders and writes results.csv, summary.csv, figures/*.png, report.md and report.html.",
        epilog="settings:\n  output_dir: where to write; default: the first FOLDER\n  title: heading of the report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    own.add_argument("given", nargs="*", metavar="FOLDER", help="a sweep, a run, or a folder above them")
    return own
