"""The checks of `recyclegpt doctor`: what each found, how bad that is, and what to do about it.

Each imports what it needs by itself, since any package may be what is broken.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from recyclegpt import __version__

INSTALL = "run `make install` in the project's folder: it installs the locked versions"
MALICIOUS = {"2.6.2", "2.6.3"}
"""Releases of `lightning` that steal credentials (GHSA-w37p-236h-pfx3)."""
LITTLE_BYTES = 5e9


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Works, but not as well as it could, or may fail later."""
    PROBLEM = "problem"
    """Does not work, or is dangerous."""


@dataclass(frozen=True)
class Finding:
    """One line of the table. There is a remedy exactly where the verdict is not ok."""

    name: str
    found: str
    verdict: Verdict = Verdict.OK
    remedy: str = ""


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
        yield Finding("python", f"{python}, outside of {wanted}", Verdict.PROBLEM, remedy)
    fine = []
    for requirement in map(Requirement, metadata.requires("recyclegpt") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", Verdict.PROBLEM, INSTALL)
            continue
        if name == "lightning" and version in MALICIOUS:
            remedy = (
                "pip uninstall lightning without importing it, change every credential that this machine could read, "
                f"then {INSTALL}"
            )
            yield Finding(name, f"{version}, a malicious release (GHSA-w37p-236h-pfx3)", Verdict.PROBLEM, remedy)
        elif not requirement.specifier.contains(version, prereleases=True):
            remedy = f"pip install '{name}{requirement.specifier}'"
            yield Finding(name, f"{version}, outside of {requirement.specifier}", Verdict.WARNING, remedy)
        else:
            fine.append(f"{name} {version}")
    yield Finding("packages", f"recyclegpt {__version__}, " + ", ".join(fine))


def devices() -> Iterator[Finding]:
    """What computes here, and the dtypes that training and decoding choose by themselves."""
    import torch

    from recyclegpt.hardware.device import device_name
    from recyclegpt.hardware.dtypes import fastest_dtype, has_native_bf16

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
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        yield Finding("cuda", f"no device (torch {torch.__version__} is {built})")
    else:
        found = f"nvidia-smi is installed, but torch {torch.__version__}, {built}, sees no GPU"
        remedy = "install a torch that fits the driver: https://pytorch.org/get-started/locally"
        yield Finding("cuda", found, Verdict.WARNING, remedy)


def compiler() -> Iterator[Finding]:
    """Whether the C++ kernels that decoding on a CPU uses can be built here."""
    from recyclegpt.kernels import build

    try:
        build.load()
    except build.KernelsUnavailableError as error:
        remedy = "install g++ (Debian: apt install g++; macOS: xcode-select --install), or name a compiler in CXX"
        found = f"not built ({error}): decoding on a CPU falls back to torch's operators, at about half the speed"
        yield Finding("C++ kernels", found, Verdict.WARNING, remedy)
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
            yield Finding(name, found, Verdict.PROBLEM, f"make it writable, or {elsewhere}")
        else:
            if free < LITTLE_BYTES:
                yield Finding(name, found, Verdict.WARNING, f"free space before a long run, or {elsewhere}")
            else:
                yield Finding(name, found)


def newest_run(folder: Path) -> Iterator[Finding]:
    """Status and checkpoints of the run in or below a folder that was written to last."""
    from filelock import FileLock, Timeout

    from recyclegpt.checkpoints.file import list_checkpoints, verify
    from recyclegpt.checkpoints.load import FOLDER
    from recyclegpt.errors import ConfigError
    from recyclegpt.runs.folder import LOCK, PROVENANCE, RESULT

    runs = {path.parent for name in (PROVENANCE, RESULT) for path in folder.rglob(name)}
    if not runs:
        yield Finding("newest run", f"none below {folder}")
        return
    run = max(runs, key=lambda run: max(file.stat().st_mtime for file in run.rglob("*")))
    trains = False
    if (run / LOCK).exists():
        try:
            with FileLock(run / LOCK, timeout=0):
                pass
        except Timeout:
            trains = True
    result = json.loads((run / RESULT).read_text(encoding="utf-8")) if (run / RESULT).exists() else {}
    if trains:
        yield Finding("newest run", f"{run}: running now")
    elif result.get("status") == "completed":
        yield Finding("newest run", f"{run}: completed")
    else:
        error = str(result.get("error") or "it was killed, or runs on another machine").splitlines()[-1]
        found = f"{run}: {result.get('status', 'unfinished')}: {error}"
        yield Finding("newest run", found, Verdict.WARNING, f"to resume it: {how_to_resume(run)}")
    intact = []
    for file in list_checkpoints(run / FOLDER):
        try:
            verify(file)
            intact.append(file.stem)
        except ConfigError as error:
            if file.exists():  # a run that trains now removes old ones
                remedy = f"copy it again, or remove it (rm {shlex.quote(str(file))}*): resume=auto uses the one before"
                yield Finding("checkpoints", error.problems[0], Verdict.PROBLEM, remedy)
    if intact:
        yield Finding("checkpoints", f"intact: {', '.join(intact)}")


def how_to_resume(run: Path) -> str:
    """The command that resumes a run, from its provenance."""
    from recyclegpt.runs.folder import PROVENANCE

    words = json.loads((run / PROVENANCE).read_text(encoding="utf-8"))["argv"][1:]
    words = [word for word in words if not word.startswith(("resume=", "hydra.run.dir="))]
    if any(word.startswith("sweep=") for word in words):
        more = []  # its file names the folder, and resumes
    elif {"-m", "--multirun"} & {*words}:
        more = [f"sweep.tag={run.parent.name}", "resume=auto"]
    else:
        more = [f"hydra.run.dir={run}", "resume=auto"]
    return shlex.join(["recyclegpt", *words, *more])
