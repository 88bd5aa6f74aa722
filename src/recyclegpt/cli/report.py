"""`recyclegpt report FOLDER`: what a sweep or a GPU report came to, as tables, figures and pages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recyclegpt.cli.console import print_table
from recyclegpt.errors import ConfigError
from recyclegpt.reporting import write_report
from recyclegpt.reporting.gpu_readme import fill_in, readme_block
from recyclegpt.reporting.gpu_report import FILE_NAME, is_gpu_report, read_gpu_report, write_gpu_report
from recyclegpt.reporting.pages import Written
from recyclegpt.reporting.tables import summary_cells
from recyclegpt.training.whole_file import write_whole


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="recyclegpt report",
        description="Read run folders and write results.csv, summary.csv, figures/*.png, report.md and report.html; or "
        "read the folder of `recyclegpt gpu-report` and write the like for it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a sweep, a run, or a folder above them; or that of a GPU report"
    )
    parser.add_argument("--output", help="where to write; default: the first FOLDER itself")
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument("--readme", metavar="FILE", help="fill the marked block of this file from a GPU report")
    arguments = parser.parse_args(list(argv))
    output = Path(arguments.output or arguments.folders[0]).expanduser()
    folders = [Path(folder).expanduser() for folder in arguments.folders]
    of_gpu = [is_gpu_report(folder) for folder in folders]
    if any(of_gpu) and len(folders) > 1:
        raise ConfigError(f"{folders[of_gpu.index(True)]}: is a GPU report; give it alone")
    for folder, found in zip(folders, of_gpu, strict=True):
        if not found and (folder / FILE_NAME).exists():
            read_gpu_report(folder / FILE_NAME)  # which says what is wrong with it
    if arguments.readme and not any(of_gpu):
        raise ConfigError(
            f"--readme: {folders[0]} is no GPU report; give the folder `recyclegpt gpu-report` wrote into"
        )
    readme = None if arguments.readme is None else _filled(Path(arguments.readme).expanduser(), folders[0])
    try:
        if any(of_gpu):
            written = write_gpu_report(folders[0], output, arguments.title)
        else:
            written = _report_on_runs(arguments.folders, output, arguments.title)
    except OSError as error:
        raise ConfigError(f"--output: {output} cannot be written ({error})") from error
    if readme is not None:
        path, text = readme
        try:
            write_whole(path, text)
        except OSError as error:
            raise ConfigError(f"--readme: {path} cannot be written ({error})") from error
        written.files.append(path)
    for path in written.files:
        print(path)
    if written.not_drawn:
        names = " and ".join(dict.fromkeys(written.not_drawn))
        print(f"{names} not installed, so figures are missing: pip install 'recyclegpt[report]'", file=sys.stderr)
    return 0


def _report_on_runs(folders: Sequence[str], output: Path, title: str | None) -> Written:
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


def _filled(readme: Path, folder: Path) -> tuple[Path, str]:
    """The file and its new text, before anything is written."""
    block = readme_block(read_gpu_report(folder / FILE_NAME))
    try:
        return readme, fill_in(readme.read_text(encoding="utf-8"), block, str(readme))
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--readme: {readme} cannot be read ({error})") from error
