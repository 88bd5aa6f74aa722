"""A run folder: whose it is, who may write in it, its log, and no trace of a run that was refused."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recyclegpt.errors import ConfigError

PROVENANCE = "provenance.json"
RESULT = "result.json"
LOCK = ".lock"
LOG = "train.log"
LOCK_TIMEOUT_S = 15


def claim(folder: Path, expected_hash: str) -> bool:
    """Make sure that `folder` may hold the run with this config hash; create it where it does not exist.

    Returns:
        Whether the folder already belongs to this very config, so that the run may resume or be skipped.

    Raises:
        ConfigError: the folder belongs to another config, or its provenance cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    provenance = read_provenance(folder)
    if provenance is None:
        return False
    if (found := provenance["config_hash"]) != expected_hash:
        raise ConfigError(
            f"{folder}: holds a run of another config (config_hash {found}, this run has {expected_hash}); "
            f"choose another folder (name=..., sweep.tag=... or hydra.run.dir=...), or move this one away"
        )
    return True


def read_provenance(folder: Path) -> dict[str, object] | None:
    """What a run folder's `provenance.json` holds, at least a `config_hash`; None where no run has written it.

    Raises:
        ConfigError: the file is not such JSON.
    """
    path = folder / PROVENANCE
    try:
        facts: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        return {"config_hash": facts["config_hash"], **facts}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot read its config_hash ({error!r}); move the folder away or choose another"
        ) from error


def is_complete(folder: Path) -> bool:
    """Whether a run has ended as it should."""
    try:
        return bool(json.loads((folder / RESULT).read_text(encoding="utf-8"))["status"] == "completed")
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process from training in a run folder, and write the log there. A process that dies lets go of it.

    Raises:
        ConfigError: another process holds it.
    """
    from lightning.pytorch.utilities import rank_zero_only  # late: it takes seconds

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
    log = logging.FileHandler(folder / LOG, encoding="utf-8")
    log.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    logging.getLogger().addHandler(log)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
        lock.release()


def remove_if_unused(folder: Path) -> None:
    """Remove the folder that Hydra has made for a run that did not begin, and the empty folders above it."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK, LOG}:
        shutil.rmtree(folder)
        remove_empty_parents(folder)


def remove_empty_parents(folder: Path) -> None:
    """Remove the empty folders above one that is gone, up to the working folder."""
    here = Path.cwd()
    with contextlib.suppress(OSError):  # something is in it
        for parent in folder.absolute().parents:
            if here not in parent.parents:
                return
            parent.rmdir()
