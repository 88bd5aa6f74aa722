"""Room to write in, and whether the file system keeps the promises that checkpoints rest on."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from recyclegpt.doctor.finding import Check, Finding, Verdict

GROUP = "disk"
LITTLE_BYTES = 5e9
NOTHING_BYTES = 0.2e9
CHECKPOINTS_OF_ROOM = 3
"""A run keeps two checkpoints, and writes the third before the first is removed."""


def checks(folder: Path, checkpoint_bytes: int) -> Mapping[str, Check]:
    """The checks of this group.

    Args:
        folder: of the runs; need not exist.
        checkpoint_bytes: size of the newest checkpoint there, 0 where there is none.
    """
    return {
        "runs": partial(room, "runs", folder, checkpoint_bytes),
        "cache": cache,
        "temporary files": temporary,
        "file system": partial(promises, folder),
    }


def cache() -> Finding:
    """Where token caches and compiled kernels go."""
    from recyclegpt.kernels.build import folder as kernels_folder

    return room("cache", kernels_folder().parent)


def temporary() -> Finding:
    """Where compilers and downloads write."""
    return room("temporary files", Path(os.environ.get("TMPDIR") or tempfile.gettempdir()))


def room(name: str, folder: Path, checkpoint_bytes: int = 0) -> Finding:
    """Free space in a folder, or in what it will be made in, and whether it can be written."""
    place = existing(folder)
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:,.1f} GB free in {place.resolve()}"
    if (error := unwritable(place)) is not None:
        return Finding(
            GROUP,
            name,
            f"{place.resolve()} cannot be written ({error})",
            Verdict.PROBLEM,
            f"make it writable, or choose another: {_other_place(name)}",
        )
    if free < NOTHING_BYTES:
        return Finding(
            GROUP, name, found, Verdict.PROBLEM, f"free space on that disk, or use another: {_other_place(name)}"
        )
    if free < CHECKPOINTS_OF_ROOM * checkpoint_bytes:
        found += f", not {CHECKPOINTS_OF_ROOM} times the newest checkpoint ({checkpoint_bytes / 1e9:,.1f} GB)"
    elif free >= LITTLE_BYTES:
        return Finding(GROUP, name, found)
    return Finding(
        GROUP,
        name,
        found,
        Verdict.WARNING,
        f"free space on that disk before a long run, or use another: {_other_place(name)}",
    )


def promises(folder: Path) -> list[Finding]:
    """Try what a checkpoint and a run's lock need, on files that are removed again."""
    place = existing(folder)
    if unwritable(place) is not None:
        return []  # told already
    with tempfile.TemporaryDirectory(prefix=".recyclegpt-doctor-", dir=place) as temporary_folder:
        tried = Path(temporary_folder)
        problems = [problem for problem in (_whole_files(tried), _locks(tried)) if problem is not None]
    if not problems:
        return [Finding(GROUP, "file system", "files are written whole (fsync, rename), and locks keep others out")]
    return [
        Finding(
            GROUP,
            "file system",
            f"{problem} in {place.resolve()}",
            verdict,
            "keep runs on a local disk (hydra.run.dir=..., or start from another folder) and copy them afterwards; "
            "network file systems often lack this",
        )
        for problem, verdict in problems
    ]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.expanduser().absolute()
    return next((place for place in (folder, *folder.parents) if place.is_dir()), folder)


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written in a folder; tried, since permissions do not tell of a disk mounted read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _whole_files(folder: Path) -> tuple[str, Verdict] | None:
    old, new = folder / "old", folder / "new"
    try:
        old.write_bytes(b"old")
        with new.open("wb") as file:
            file.write(b"new")
            file.flush()
            os.fsync(file.fileno())
        new.replace(old)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if old.read_bytes() == b"new" and not new.exists():
            return None
        return "a renamed file is not what was written", Verdict.PROBLEM
    except OSError as error:
        return (
            f"checkpoints cannot be written whole: fsync or rename fails ({error.strerror or error})",
            Verdict.PROBLEM,
        )


def _locks(folder: Path) -> tuple[str, Verdict] | None:
    from filelock import FileLock, Timeout

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with FileLock(folder / "lock", timeout=0):
                try:
                    with FileLock(folder / "lock", timeout=0):
                        return "locks do not keep a second process out of a run", Verdict.WARNING
                except Timeout:
                    pass
        except (OSError, NotImplementedError, Timeout) as error:
            return f"files cannot be locked ({error})", Verdict.PROBLEM
    if told:
        return f"a killed run may leave its lock behind ({told[0].message})", Verdict.WARNING
    return None


def _other_place(name: str) -> str:
    return {
        "runs": "start from another folder, or hydra.run.dir=...",
        "cache": "export RECYCLEGPT_CACHE=FOLDER",
        "temporary files": "export TMPDIR=FOLDER",
    }[name]
