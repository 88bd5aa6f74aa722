"""`recyclegpt doctor [FOLDER]`: what is wrong with this installation, machine or newest run, and the remedy.

Each check imports what it needs by itself, since any package may be what is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from recyclegpt import __version__
from recyclegpt.console import paint

INSTALL = "run `make install` in the project's folder: it installs the locked versions"
OK, WARNING, PROBLEM = "ok", "warning", "problem"
"""Verdicts. A warning works, but not as well as it could, or may fail later."""
COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "red"}
LITTLE_BYTES = 5e9


class Finding(NamedTuple):
    """One line of the table. There is a remedy exactly where the verdict is not ok."""

    name: str
    found: str
    verdict: str = OK
    remedy: str = ""


def run(argv: Sequence[str]) -> int:
    """The command: 0 without a problem (warnings allowed), 1 with one."""
    arguments = parser().parse_args(list(argv))
    findings = list(examine(Path(arguments.folder).expanduser()))
    if arguments.json:
        document = {"recyclegpt": __version__, "findings": [finding._asdict() for finding in findings]}
        print(json.dumps(document, indent=2))
    else:
        _print(findings)
    return int(any(finding.verdict == PROBLEM for finding in findings))


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
        "versions": versions,
        "device": devices,
        "compiler": compiler,
        "disk": lambda: disk(folder),
        "newest run": lambda: newest_run(folder),
    }
    for name, check in checks.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield from list(check())
        except Exception as error:
            first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            yield Finding(name, f"could not be checked: {first}", PROBLEM, INSTALL)


def _print(findings: Sequence[Finding]) -> None:
    """A line a finding, then what to do: problems first."""
    for name, found, verdict, _ in findings:
        print(f"{name:15} {paint(f'{verdict:8}', COLOURS[verdict])} {found}")
    ill = sorted((f for f in findings if f.remedy), key=lambda finding: finding.verdict != PROBLEM)
    print(paint("\nwhat to do", "bold") if ill else "\nnothing to do")
    for number, finding in enumerate(ill, start=1):
        print(f"{number}. {finding.name}: {finding.remedy}")


def versions() -> Iterator[Finding]:
    """Python, and every package compared with the range this project asks for, from the metadata alone."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata("recyclegpt")["Requires-Python"] or ""
    python = platform.python_version()
    if SpecifierSet(wanted).contains(python, prereleases=True):
        yield Finding("python", f"{python}, {sys.executable}")
    else:
        remedy = f"make a virtual environment with Python {wanted}"
        yield Finding("python", f"{python}, outside of {wanted}", PROBLEM, remedy)
    fine = []
    for requirement in map(Requirement, metadata.requires("recyclegpt") or []):
        name, specifier = requirement.name, requirement.specifier
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", PROBLEM, INSTALL)
            continue
        if specifier.contains(version, prereleases=True):
            fine.append(f"{name} {version}")
        else:
            yield Finding(name, f"{version}, outside of {specifier}", WARNING, f"pip install '{name}{specifier}'")
    yield Finding("packages", f"recyclegpt {__version__}, " + ", ".join(fine))


def devices() -> Iterator[Finding]:
    """What computes here, and the dtypes that training and decoding choose by themselves."""
    import torch

    from recyclegpt.hardware.device import device_name, fastest_dtype, has_native_bf16

    for device in [torch.device("cpu"), *(torch.device("cuda", n) for n in range(torch.cuda.device_count()))]:
        if device.type == "cpu":
            size = f"{torch.get_num_threads()} threads"
        else:
            size = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
        precision = "bf16-mixed" if has_native_bf16(device) else "32-true"
        dtypes = f"training in {precision}, decoding in {str(fastest_dtype(device)).removeprefix('torch.')}"
        yield Finding(str(device), f"{device_name(device)}, {size}: {dtypes}")
    if torch.cuda.is_available():
        return
    built = f"torch {torch.__version__} is built " + (f"for {torch.version.cuda}" if torch.version.cuda else "without")
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        yield Finding("cuda", f"no device ({built} CUDA)")
    else:
        remedy = "install a torch that fits the driver: https://pytorch.org/get-started/locally"
        yield Finding("cuda", f"nvidia-smi is installed, but torch sees no GPU ({built} CUDA)", WARNING, remedy)


def compiler() -> Iterator[Finding]:
    """Whether the C++ kernels that decoding on a CPU uses can be built here."""
    from recyclegpt.kernels import build

    try:
        build.load()
    except build.KernelsUnavailableError as error:
        remedy = "install g++ (Debian: apt install g++; macOS: xcode-select --install), or name a compiler in CXX"
        found = f"not built ({error}): decoding on a CPU falls back to torch's operators, at about half the speed"
        yield Finding("C++ kernels", found, WARNING, remedy)
    else:
        yield Finding("C++ kernels", f"built in {build.folder()}")


def disk(folder: Path) -> Iterator[Finding]:
    """Whether runs and caches can be written, and how much space is free."""
    cache = Path(os.environ.get("RECYCLEGPT_CACHE") or "~/.cache/recyclegpt")
    for name, wanted, elsewhere in (
        ("disk of runs", folder, "start from another folder, or set hydra.run.dir=..."),
        ("disk of caches", cache, "export RECYCLEGPT_CACHE=FOLDER"),
    ):
        path = wanted.expanduser().absolute()
        place = next(place for place in (path, *path.parents) if place.is_dir())
        free = shutil.disk_usage(place).free
        found = f"{free / 1e9:,.1f} GB free in {place}"
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            found = f"{place} cannot be written ({error.strerror or error})"
            yield Finding(name, found, PROBLEM, f"make it writable, or {elsewhere}")
        else:
            remedy = f"free space before a long run, or {elsewhere}" if free < LITTLE_BYTES else ""
            yield Finding(name, found, WARNING if remedy else OK, remedy)


def newest_run(folder: Path) -> Iterator[Finding]:
    """Status and checkpoints of the run in or below a folder that was written to last."""
    from recyclegpt.checkpoints.file import list_checkpoints, verify
    from recyclegpt.checkpoints.load import FOLDER
    from recyclegpt.errors import ConfigError
    from recyclegpt.runs.folder import PROVENANCE, RESULT

    runs = {path.parent for name in (PROVENANCE, RESULT) for path in folder.rglob(name)}
    if not runs:
        yield Finding("newest run", f"none below {folder}")
        return
    run = max(runs, key=lambda run: max(file.stat().st_mtime for file in run.rglob("*")))
    result = json.loads((run / RESULT).read_text(encoding="utf-8")) if (run / RESULT).exists() else {}
    if (status := result.get("status", "unfinished")) == "completed":
        yield Finding("newest run", f"{run}: {status}")
    else:
        error = str(result.get("error") or "it runs now, or was killed").splitlines()[-1]
        remedy = f"to resume it: its command with resume=auto, and hydra.run.dir={run} or sweep.tag={run.parent.name}"
        yield Finding("newest run", f"{run}: {status}: {error}", WARNING, remedy)
    intact = []
    for file in list_checkpoints(run / FOLDER):
        try:
            verify(file)
            intact.append(file.stem)
        except ConfigError as error:
            if file.exists():  # a run that trains now removes old ones
                remedy = f"copy it again, or remove it (rm {shlex.quote(str(file))}*): resume=auto uses the one before"
                yield Finding("checkpoints", error.problems[0], PROBLEM, remedy)
    if intact:
        yield Finding("checkpoints", f"intact: {', '.join(intact)}")
