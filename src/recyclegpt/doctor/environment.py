"""The Python that runs, and what surrounds it."""

from __future__ import annotations

import locale
import os
import platform
import sys
import tempfile
from importlib import metadata

from recyclegpt.doctor.finding import Check, Finding, Verdict
from recyclegpt.doctor.packages import readable
from recyclegpt.hardware import cpu as processor

GROUP = "environment"


def python() -> Finding:
    """Its version, beside those the package allows."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    try:
        wanted = metadata.metadata("recyclegpt")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return Finding(GROUP, "python", f"{version} ({sys.executable})")  # the packages' own check says what is wrong
    found = f"{version} (wants {readable(wanted)}), {sys.executable}"
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(GROUP, "python", found)
    return Finding(
        GROUP,
        "python",
        found,
        Verdict.PROBLEM,
        f"make a virtual environment with a Python {readable(wanted)}; Hydra 1.3 does not run on Python 3.14",
    )


def virtual_environment() -> Finding:
    """Information: which one is active."""
    if sys.prefix != sys.base_prefix:
        found = sys.prefix
    elif os.environ.get("CONDA_PREFIX"):
        found = f"conda: {os.environ['CONDA_PREFIX']}"
    else:
        found = "none: packages of other programs may get in the way"
    return Finding(GROUP, "virtual environment", found)


def system() -> Finding:
    """Information: what the machine runs."""
    return Finding(GROUP, "platform", platform.platform())


def threads() -> Finding:
    """More threads than cores wait for one another; that makes decoding many times slower, not a little."""
    import torch

    number, usable = torch.get_num_threads(), processor.num_usable()
    limit = processor.quota()
    variable = os.environ.get("OMP_NUM_THREADS")
    # torch takes no more than it finds cores, other libraries start as many as the variable says.
    asked = int(first) if (first := (variable or "").partition(",")[0].strip()).isdigit() else 0
    found = (
        f"{number}, on {processor.num_physical()} physical cores"
        + ("" if processor.num_logical() == processor.num_physical() else f" ({processor.num_logical()} logical)")
        + ("" if limit is None else f", limited to the time of {limit:g}")
        + (", OMP_NUM_THREADS not set" if variable is None else f", OMP_NUM_THREADS={variable}")
    )
    if max(number, asked) <= usable:
        return Finding(GROUP, "threads", found)
    return Finding(
        GROUP,
        "threads",
        found,
        Verdict.WARNING,
        f"export OMP_NUM_THREADS={usable}: more threads than cores wait for one another",
    )


def encoding() -> Finding:
    """Text files without a declared encoding, and names of files, should be UTF-8."""
    names = {
        "locale": locale.getpreferredencoding(False),
        "file names": sys.getfilesystemencoding(),
        "output": getattr(sys.stdout, "encoding", None) or "UTF-8",
    }
    others = {name: value for name, value in names.items() if value.lower().replace("-", "").replace("_", "") != "utf8"}
    if not others:
        return Finding(GROUP, "encoding", "UTF-8")
    return Finding(
        GROUP,
        "encoding",
        ", ".join(f"{name}: {value}" for name, value in others.items()),
        Verdict.WARNING,
        "export PYTHONUTF8=1 (or a UTF-8 locale, such as LC_ALL=C.UTF-8), or text that is not ASCII may be misread",
    )


def temporary_folder() -> Finding:
    """Whether TMPDIR is what programs will use."""
    wanted = os.environ.get("TMPDIR")
    try:
        with tempfile.TemporaryFile(dir=wanted or tempfile.gettempdir()):
            return Finding(GROUP, "temporary folder", wanted or tempfile.gettempdir())
    except OSError as error:
        return Finding(
            GROUP,
            "temporary folder",
            f"{wanted or 'none'} cannot be written ({error.strerror or error})",
            Verdict.WARNING,
            "set TMPDIR to a folder that can be written: compilers and downloads need one",
        )


CHECKS: dict[str, Check] = {
    "python": python,
    "virtual environment": virtual_environment,
    "platform": system,
    "threads": threads,
    "encoding": encoding,
    "temporary folder": temporary_folder,
}
