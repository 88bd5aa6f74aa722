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
from recyclegpt.console import paint

COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}


def run(argv: Sequence[str]) -> int:
    """The command: 0 without a problem (warnings allowed), 1 with one."""
    arguments = parser().parse_args(list(argv))
    findings = list(examine(Path(arguments.folder).expanduser()))
    if arguments.json:
        document = {"recyclegpt": __version__, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(document, indent=2))
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
    """All findings: versions, device, compiler, disk, the newest run. A check that fails is a finding too."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": doctor_checks.versions,
        "device": doctor_checks.devices,
        "compiler": doctor_checks.compiler,
        "disk": partial(doctor_checks.disk, folder),
        "newest run": partial(doctor_checks.newest_run, folder),
    }
    for name, check in checks.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield from list(check())
        except Exception as error:
            first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            yield Finding(name, f"could not be checked: {first}", Verdict.PROBLEM, INSTALL)


def _print(findings: Sequence[Finding]) -> None:
    """A line a finding, then what to do: problems first."""
    width = shutil.get_terminal_size((110, 24)).columns
    for finding in findings:
        head = f"{finding.name:15} {finding.verdict:8} "
        text = textwrap.fill(finding.found, max(60, width), initial_indent=head, subsequent_indent=" " * len(head))
        print(text.replace(head, f"{finding.name:15} {paint(f'{finding.verdict:8}', COLOURS[finding.verdict])} ", 1))
    ill = sorted((f for f in findings if f.remedy), key=lambda finding: finding.verdict is not Verdict.PROBLEM)
    print(paint("\nwhat to do", "bold") if ill else "\nnothing to do")
    for number, finding in enumerate(ill, start=1):
        print(f"{number}. {finding.name}: {finding.remedy}")
