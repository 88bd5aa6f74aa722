"""A run folder: whose it is, who may write in it, its log, and no trace of a run that was refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from recyclegpt.errors import ConfigError

PROVENANCE = "provenance.json"
RESULT = "result.json"
LOCK = ".lock"
LOCK_TIMEOUT_S = 15


def claim(folder: Path, expected_hash: str) -> bool:
    """Make sure that `folder` may hold the run with this config hash; create it where it does not exist.

    Returns:
        Whether the folder already belongs to this very config, so that the run may resume or be skipped.

    Raises:
        ConfigError: the folder belongs to another config, or its provenance cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = read_hash(folder)
    if found is None:
        return False
    if found != expected_hash:
        raise ConfigError(
            f"{folder}: holds a run of another config (config_hash {found}, this run has {expected_hash}); "
            f"choose another folder (name=..., sweep.tag=... or hydra.run.dir=...), or move this one away"
        )
    return True


def read_hash(folder: Path) -> str | None:
    """The config hash a run folder was written with; None where no run has written its `provenance.json`.

    Raises:
        ConfigError: the file is there but holds no hash.
    """
    path = folder / PROVENANCE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["config_hash"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: cannot read its config_hash ({error!r}); move the folder away or choose another"
        ) from error
    if not isinstance(found, str):
        raise ConfigError(f"{path}: config_hash is {found!r}, not a string; move the folder away or choose another")
    return found


def is_complete(folder: Path) -> bool:
    """Whether a run has ended as it should."""
    try:
        return bool(json.loads((folder / RESULT).read_text(encoding="utf-8"))["status"] == "completed")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process from training in a run folder; a process that dies lets go of it.

    Raises:
        ConfigError: another process holds it.
    """
    if getattr(rank_zero_only, "rank", 0):  # the first process of a job holds it for the others
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        # The data workers of a run that was killed hold its lock until they notice, which takes five seconds.
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout as error:
        raise ConfigError(
            f"{folder}: another process trains in this folder; wait for it, stop it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


class RunLog:
    """Collects what is logged; once a run has its folder, writes it to a file there."""

    def __init__(self) -> None:
        self._memory = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)

    def __enter__(self) -> RunLog:
        logging.getLogger().addHandler(self._memory)
        return self

    def write_to(self, path: Path) -> None:
        """Write what has been logged so far, and from now on every line at once."""
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
        self._memory.setTarget(file)
        self._memory.flush()
        self._memory.capacity = 1

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._memory)
        if self._memory.target is not None:
            self._memory.target.close()
        self._memory.close()


def remove_if_unused(folder: Path) -> None:
    """Remove the folder that Hydra has made for a run that did not begin, and the empty folders above it."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK}:
        shutil.rmtree(folder)
        remove_empty_parents(folder)


def remove_empty_parents(folder: Path) -> None:
    """Remove the empty folders above one that is gone, up to the working folder."""
    here = Path.cwd()
    for parent in folder.absolute().parents:
        if parent == here or here not in parent.parents:
            return
        try:
            parent.rmdir()
        except OSError:  # something is in it
            return
