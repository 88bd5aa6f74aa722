"""The checks of `recyclegpt doctor`: what each found, how bad that is, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from recyclegpt import __version__

# Named as by the rooms that write them: importing those imports Lightning, which may be what is broken.
PROVENANCE, RESULT, CHECKPOINTS, LOCK = "provenance.json", "result.json", "checkpoints", ".lock"
INSTALL = "run `make install` in the project's folder: it installs the locked versions"
MALICIOUS = {"2.6.2", "2.6.3"}
"""Releases of `lightning` that steal credentials (GHSA-w37p-236h-pfx3)."""
LITTLE_BYTES = 5e9
CHECKPOINTS_OF_ROOM = 3
"""A run keeps two checkpoints, and writes the third before the first is removed."""


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
    for line in metadata.requires("recyclegpt") or []:
        requirement = Requirement(line)
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

    from recyclegpt.hardware.device import cpu_name
    from recyclegpt.hardware.dtypes import fastest_dtype, has_native_bf16

    def dtypes(device: torch.device) -> str:
        precision = "bf16-mixed" if has_native_bf16(device) else "32-true"
        return f"training in {precision}, decoding in {str(fastest_dtype(device)).removeprefix('torch.')}"

    processor = torch.device("cpu")
    yield Finding("cpu", f"{cpu_name()}, {torch.get_num_threads()} threads: {dtypes(processor)}")
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        facts = torch.cuda.get_device_properties(device)
        yield Finding(str(device), f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB: {dtypes(device)}")
    if torch.cuda.device_count():
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        yield Finding("cuda", f"no device (torch {torch.__version__} is {built})")
        return
    yield Finding(
        "cuda",
        f"nvidia-smi is installed, but torch {torch.__version__}, {built}, sees no GPU",
        Verdict.WARNING,
        "install a torch that fits the driver: https://pytorch.org/get-started/locally",
    )


def compiler() -> Finding:
    """Whether the C++ kernels that decoding on a CPU uses can be built here."""
    from recyclegpt.kernels import build

    try:
        build.load()
    except build.KernelsUnavailableError as error:
        remedy = "install g++ (Debian: apt install g++; macOS: xcode-select --install), or name a compiler in CXX"
        found = f"not built ({error}): decoding on a CPU falls back to torch's operators, at about half the speed"
        return Finding("C++ kernels", found, Verdict.WARNING, remedy)
    return Finding("C++ kernels", f"built in {build.folder()}")


def disk(folder: Path) -> Iterator[Finding]:
    """Free space where runs and caches go, compared with the size of the newest checkpoint."""
    run = find_newest(folder)
    checkpoint_bytes = max((file.stat().st_size for file in _checkpoints(run)), default=0) if run is not None else 0
    cache = Path(os.environ.get("RECYCLEGPT_CACHE") or "~/.cache/recyclegpt")
    moves = "start from another folder, or set hydra.run.dir=..."
    yield _room("disk of runs", folder, CHECKPOINTS_OF_ROOM * checkpoint_bytes, moves)
    yield _room("disk of caches", cache, 0, "export RECYCLEGPT_CACHE=FOLDER")


def _room(name: str, folder: Path, needed: float, elsewhere: str) -> Finding:
    folder = folder.expanduser().absolute()
    place = next(place for place in (folder, *folder.parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        found = f"{place} cannot be written ({error.strerror or error})"
        return Finding(name, found, Verdict.PROBLEM, f"make it writable, or {elsewhere}")
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:,.1f} GB free in {place}"
    if free >= max(needed, LITTLE_BYTES):
        return Finding(name, found)
    if free < needed:
        found += f", less than {CHECKPOINTS_OF_ROOM} checkpoints need ({needed / 1e9:,.1f} GB)"
    return Finding(name, found, Verdict.WARNING, f"free space on that disk before a long run, or {elsewhere}")


def find_newest(folder: Path) -> Path | None:
    """The run folder in or below a folder that was written to last."""
    runs: list[Path] = []
    for place, folders, files in os.walk(folder):
        if PROVENANCE in files or RESULT in files:
            runs.append(Path(place))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return max(runs, key=_written, default=None)


def newest_run(folder: Path) -> Iterator[Finding]:
    """Status and checkpoints of the newest run."""
    from recyclegpt.checkpoints.file import list_checkpoints, verify
    from recyclegpt.errors import ConfigError

    run = find_newest(folder)
    if run is None:
        yield Finding("newest run", f"none below {folder}")
        return
    yield _status(run)
    intact: list[str] = []
    unsigned: list[str] = []
    for file in list_checkpoints(run / CHECKPOINTS):
        try:
            (intact if verify(file) else unsigned).append(file.stem)
        except ConfigError as error:
            if file.exists():  # a run that trains now removes old ones
                remedy = f"copy it again, or remove it (rm {shlex.quote(str(file))}*): resume=auto uses the one before"
                yield Finding("checkpoints", error.problems[0], Verdict.PROBLEM, remedy)
    if intact:
        yield Finding("checkpoints", f"as they were written: {', '.join(intact)}")
    if unsigned:
        found = f"without a checksum, so damage cannot be detected: {', '.join(unsigned)}"
        yield Finding("checkpoints", found, Verdict.WARNING, "resume the run: new checkpoints have one")


def how_to_resume(run: Path) -> str:
    """The command that resumes a run, as far as its provenance tells."""
    argv = _read(run / PROVENANCE).get("argv")
    if not isinstance(argv, list) or len(argv) < 2 or argv[1] not in ("train", "adapt"):
        return f"the command that started it, with resume=auto hydra.run.dir={run}"
    words = [str(word) for word in argv[1:]]
    if any(word in ("-m", "--multirun") or word.startswith("sweep=") for word in words):
        if not any(word.startswith(("sweep=", "sweep.tag=", "hydra.sweep.dir=")) for word in words):
            words.append(f"sweep.tag={run.parent.name}")  # else it would begin a new sweep
        if not any(word.startswith(("sweep=", "resume=")) for word in words):
            words.append("resume=auto")
        return shlex.join(["recyclegpt", *words])
    words = [word for word in words if not word.startswith(("resume=", "hydra.run.dir="))]
    text = str(run)
    value = text if re.fullmatch(r"[\w./-]+", text, re.ASCII) else "'" + text.replace("'", r"\'") + "'"
    return shlex.join(["recyclegpt", *words, "resume=auto", f"hydra.run.dir={value}"])


def _status(run: Path) -> Finding:
    result = _read(run / RESULT)
    status = result.get("status")
    if _is_training(run):
        return Finding("newest run", f"{run}: running now")
    if status == "completed":
        return Finding("newest run", f"{run}: completed")
    lines = str(result.get("error") or "").strip().splitlines()
    found = f"{status}: {lines[-1]}" if lines else "unfinished: it was killed, or runs on another machine"
    return Finding("newest run", f"{run}: {found}", Verdict.WARNING, f"to resume it: {how_to_resume(run)}")


def _is_training(run: Path) -> bool:
    """Whether a process holds the run's lock."""
    from filelock import FileLock, Timeout

    if not (run / LOCK).exists():
        return False
    try:
        with FileLock(run / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _checkpoints(run: Path) -> list[Path]:
    return list((run / CHECKPOINTS).glob("step_*.ckpt"))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _written(run: Path) -> float:
    """When a run last wrote one of its own files."""
    files = [run / PROVENANCE, run / RESULT, *_checkpoints(run)]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
