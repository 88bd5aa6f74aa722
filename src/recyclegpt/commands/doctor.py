"""`recyclegpt doctor [FOLDER]`: what is wrong with this installation, machine or newest run, and the remedy."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from recyclegpt import __version__
from recyclegpt.commands import doctor_checks
from recyclegpt.commands.doctor_checks import INSTALL, Finding, Verdict
from recyclegpt.console import format_table, paint
from recyclegpt.errors import ConfigError

EXAMPLES = (
    ("this installation, this machine and the newest run under outputs", ""),
    ("the newest run of a sweep", "outputs/sweeps/recycle_depth"),
    ("for a bug report", "--json"),
)


COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}


def run(argv: Sequence[str]) -> int:
    """The command: 0 without a problem (warnings allowed), 1 with one."""
    arguments = parser().parse_args(list(argv))
    folder = Path(arguments.folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"FOLDER: {folder} is a file; give the folder your runs are in")
    findings = list(examine(folder))
    if arguments.json:
        worst = max((finding.verdict for finding in findings), key=list(Verdict).index)
        facts = {"recyclegpt": __version__, "verdict": worst, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(facts, indent=2))
    else:
        _print(findings)
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    own = argparse.ArgumentParser(
        prog="recyclegpt doctor",
        description="Exits 1 if there is a problem, else 0. Writes nothing but the cache of compiled kernels.",
        allow_abbrev=False,
        add_help=False,
    )
    own.add_argument("folder", nargs="?", default="outputs", metavar="FOLDER", help="where runs are; default: outputs")
    own.add_argument("--json", action="store_true", help="print the findings as one JSON document")
    return own


def examine(folder: Path) -> Iterator[Finding]:
    """All findings: versions, device, compiler, the newest run, disk."""
    yield from _checked("versions", doctor_checks.versions)
    yield from _checked("device", doctor_checks.devices)
    yield from _checked("compiler", doctor_checks.compiler)
    yield from _checked("disk", partial(doctor_checks.disk, folder))
    yield from _checked("newest run", partial(doctor_checks.newest_run, folder))


def _checked(name: str, check: Callable[[], Finding | Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; where it fails, that is a finding too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = check()
            yield from [found] if isinstance(found, Finding) else list(found)
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        yield Finding(name, f"could not be checked: {first}", Verdict.PROBLEM, INSTALL)


def _print(findings: Sequence[Finding]) -> None:
    """The table, then what to do: problems first."""
    width = max(40, shutil.get_terminal_size((110, 24)).columns - max(len(finding.name) for finding in findings) - 13)
    rows: list[tuple[str, str, str]] = []
    for finding in findings:
        first, *rest = textwrap.wrap(finding.found, width, break_on_hyphens=False)
        rows += [(finding.name, first, finding.verdict), *(("", line, "") for line in rest)]
    header, rule, *lines = format_table(rows, ("check", "finding", "verdict")).splitlines()
    print(paint(header, "bold"), rule, sep="\n")
    for line, (_, _, verdict) in zip(lines, rows, strict=True):
        print(line.removesuffix(verdict) + paint(verdict, COLOURS[Verdict(verdict)]) if verdict else line)
    ill = sorted((f for f in findings if f.remedy), key=lambda finding: finding.verdict is not Verdict.PROBLEM)
    print(paint("\nwhat to do", "bold"))
    for number, finding in enumerate(ill, start=1):
        print(f"{number}. {finding.name}: {finding.remedy}")
    if not ill:
        print("nothing")
