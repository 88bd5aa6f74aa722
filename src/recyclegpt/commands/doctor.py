"""`recyclegpt doctor [FOLDER]`: what is wrong with this installation, machine and runs, and what to do about it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from recyclegpt import __version__
from recyclegpt.console import format_table, paint
from recyclegpt.doctor import compiler, device, disk, environment, packages, runs
from recyclegpt.doctor.finding import Check, Finding, Verdict, carry_out
from recyclegpt.errors import ConfigError

FORMAT = 1
HEADER = ("check", "finding", "verdict")
COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}
NARROWEST = 40
"""Characters of the column of findings, however narrow the terminal."""


def run(argv: Sequence[str]) -> int:
    """The command: 0 without a problem (warnings allowed), 1 with one."""
    parser = argparse.ArgumentParser(
        prog="recyclegpt doctor",
        description="Check environment, versions, device, compiler, disk and the newest run, and say what to do. "
        "Nothing is changed. Exits 1 if there is a problem, else 0.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", nargs="?", default=str(runs.DEFAULT), metavar="FOLDER", help="where runs are kept")
    parser.add_argument("--all", action="store_true", help="look at every run below FOLDER, not only at the newest")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON document")
    arguments = parser.parse_args(list(argv))
    try:
        folder = Path(arguments.folder).expanduser()
        is_file = folder.exists() and not folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"FOLDER: {arguments.folder!r} cannot be looked at ({error})") from error
    if is_file:
        raise ConfigError(f"FOLDER: {folder} is a file; give the folder your runs are in")
    findings = list(examine(folder, arguments.all))
    _print(as_json(findings) if arguments.json else as_text(findings))
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def examine(folder: Path, every: bool = False) -> Iterator[Finding]:
    """All findings, group by group. Packages come before anything is imported that might be one of the bad ones.

    Args:
        folder: where runs are kept; need not exist.
        every: look at all runs, not only at the newest.
    """
    found: list[Path] = []

    def look_for_runs() -> list[Finding]:
        found.extend(runs.find_runs(folder))
        return []

    yield from _group(packages.GROUP, packages.CHECKS)
    yield from _group(environment.GROUP, environment.CHECKS)
    yield from _group(device.GROUP, device.CHECKS)
    yield from _group(compiler.GROUP, compiler.CHECKS)
    yield from carry_out(runs.GROUP, "found", look_for_runs)
    yield from _group(disk.GROUP, disk.checks(folder, runs.newest_checkpoint_bytes(found)))
    yield from carry_out(runs.GROUP, "found", lambda: runs.examine(folder, found, every))


def as_json(findings: Sequence[Finding]) -> str:
    """One document, to be pasted into a report of a bug."""
    verdicts = list(Verdict)
    worst = max((finding.verdict for finding in findings), key=verdicts.index, default=Verdict.OK)
    document = {
        "format": FORMAT,
        "recyclegpt": __version__,
        "verdict": worst,
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(document, indent=2)


def as_text(findings: Sequence[Finding]) -> str:
    """The table, what to do (problems first, a remedy of several findings once), and a count."""
    ill = [finding for finding in findings if finding.verdict is not Verdict.OK]
    lines = [*_table(findings), "", paint("what to do", "bold")]
    if not ill:
        return "\n".join([*lines, "nothing to do"])
    width = max(_terminal_width(), NARROWEST)
    remedies: dict[str, list[str]] = {}
    for finding in sorted(ill, key=lambda finding: finding.verdict is not Verdict.PROBLEM):
        remedies.setdefault(finding.remedy, []).append(f"{finding.group}, {finding.name}")
    for number, (remedy, places) in enumerate(remedies.items(), start=1):
        head = f"{number}. "
        more = "" if len(places) == 1 else f" (and {len(places) - 1} more)"
        lines += textwrap.wrap(
            f"{places[0]}{more}: {remedy}",
            width,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
    counts = {
        verdict: sum(finding.verdict is verdict for finding in ill) for verdict in (Verdict.PROBLEM, Verdict.WARNING)
    }
    told = [f"{count} {verdict}{'' if count == 1 else 's'}" for verdict, count in counts.items() if count]
    return "\n".join([*lines, "", ", ".join(told)])


def _table(findings: Sequence[Finding]) -> list[str]:
    """A heading for each group, long findings on several lines, verdicts in colour on a terminal."""
    names = max([len(finding.name) + 2 for finding in findings] + [len(HEADER[0])])
    width = max(NARROWEST, _terminal_width() - names - max(len(verdict) for verdict in Verdict) - 4)
    rows: list[tuple[str, str, str]] = []
    verdicts: list[Verdict | None] = []
    headings: dict[int, str] = {}
    for finding in findings:
        if finding.group not in headings.values():
            headings[len(rows)] = finding.group
        text = " ".join(finding.found.split())
        first, *rest = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
        rows += [(f"  {finding.name}", first, finding.verdict), *(("", line, "") for line in rest)]
        verdicts += [finding.verdict, *(None for _ in rest)]
    header, rule, *lines = format_table(rows, HEADER).splitlines()
    table = [paint(header, "bold"), rule]
    for row, (line, verdict) in enumerate(zip(lines, verdicts, strict=True)):
        if row in headings:  # not a cell of the table, which a long one would widen
            table.append(headings[row])
        table.append(line if verdict is None else line.removesuffix(verdict) + paint(verdict, COLOURS[verdict]))
    return table


def _group(name: str, checks: Mapping[str, Check]) -> Iterator[Finding]:
    for check, function in checks.items():
        yield from carry_out(name, check, function)


def _terminal_width() -> int:
    return shutil.get_terminal_size((110, 24)).columns


def _print(text: str) -> None:
    """Also where the terminal's encoding lacks a character of some file's name."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
