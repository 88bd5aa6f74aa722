"""`recyclegpt report FOLDER...`: the results of runs and sweeps as tables, figures and pages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from recyclegpt.console import print_table
from recyclegpt.errors import ConfigError
from recyclegpt.reporting import write_report
from recyclegpt.reporting.tables import summary_cells


def run(argv: Sequence[str]) -> int:
    given = parser().parse_args(list(argv)).given
    folders = [text for text in given if not text.startswith("output_dir=")]
    if not folders:
        raise ConfigError("FOLDER: none is given; name a sweep, a run, or a folder above them")
    chosen = [text.partition("=")[2] for text in given if text.startswith("output_dir=")]
    output = Path([*folders[:1], *chosen][-1]).expanduser()
    try:
        report = write_report(folders, output)
    except OSError as error:
        raise ConfigError(f"output_dir: {output} cannot be written ({error})") from error
    header, rows = summary_cells(report.settings)
    if rows:
        print_table(rows, header)
        print()
    left_out: dict[str, Collection[object]] = {
        "failed": report.runs.of_status("failed"),
        "unfinished": report.runs.of_status("unfinished"),
        "missing": report.runs.missing,
        "unreadable files": report.runs.problems,
    }
    if counts := [f"{len(found)} {name}" for name, found in left_out.items() if found]:
        print(f"{'; '.join(counts)}: listed in the report")
    print(*report.files, sep="\n")
    if report.not_drawn:
        names = " and ".join(dict.fromkeys(report.not_drawn))
        print(f"{names} not installed, so figures are missing: pip install 'recyclegpt[report]'", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(
        prog="recyclegpt report",
        usage="recyclegpt report FOLDER ... [output_dir=FOLDER]",
        description="Writes results.csv, summary.csv, figures/*.png, report.md and report.html.",
        epilog="settings: output_dir, where to write; default: the first FOLDER",
        allow_abbrev=False,
        add_help=False,
    )
    own.add_argument("given", nargs="*", metavar="FOLDER", help="a sweep, a run, or a folder above them")
    return own
