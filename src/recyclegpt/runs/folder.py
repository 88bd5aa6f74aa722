"""A run folder: whose it is, who may write in it, where the run came from; no trace of a run that was refused.

Of a sweep, also where it stands: `job 3 of 12, about 9 min left`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig

from hydra_plugins.recyclegpt_controlled_sweeper.controlled_sweeper import CONTROL
from hydra_plugins.recyclegpt_controlled_sweeper.controlled_sweeper import FILE_NAME as JOB_LIST
from recyclegpt.configuration.hydra_app import shares_machine
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json
from recyclegpt.hardware.device import cpu_name

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
        what = f"holds a run of another config (config_hash {found}, this run has {expected_hash})"
        raise ConfigError(f"{folder}: {what}; choose another (name=..., sweep.tag=... or hydra.run.dir=...)")
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
        raise ConfigError(f"{path}: cannot read its config_hash ({error!r}); choose another folder") from error


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
        raise ConfigError(f"{folder}: another process trains here; wait for it, or choose another folder") from error
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


FORMAT = 1
PACKAGES = ("recyclegpt", "torch", "lightning", "hydra-core", "omegaconf", "datasets", "tokenizers", "numpy")


def write_provenance(folder: Path, config_hash: str, **facts: Any) -> None:
    """Write `provenance.json` into a run folder, whole or not at all.

    A run that resumes in its folder keeps what was written before, oldest first, under `earlier_starts`.

    Args:
        **facts: more of them, such as `data_fingerprint`; JSON values.

    Raises:
        ConfigError: what was written before cannot be read.
    """
    earlier: Any = read_provenance(folder)
    starts = [] if earlier is None else [*earlier.pop("earlier_starts", []), earlier]
    document = {
        "format": FORMAT,
        "config_hash": config_hash,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "git": git_state(Path(__file__)),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **facts,
        "earlier_starts": starts,
    }
    write_json(folder / PROVENANCE, document)


def git_state(file: Path) -> dict[str, Any] | None:
    """Commit, whether the working tree differs from it, and a hash of the difference; None outside a repository.

    None too where the repository does not track `file`, as when the package is installed inside someone's project.
    """
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    difference = _git(folder, "diff", "HEAD")
    return {
        "commit": None if commit is None else commit.decode().strip(),
        "dirty": None if status is None else bool(status.strip()),
        "diff_sha256": hashlib.sha256(difference).hexdigest() if difference else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=True, env=environment).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def progress_line() -> str:
    """`job 3 of 12: seed=1; 2 complete, about 9 min left`, of the job of a sweep that this process runs."""
    hydra = HydraConfig.get()
    folder, own = Path(hydra.sweep.dir), set(hydra.overrides.task)
    if not (folder / JOB_LIST).exists():
        return f"job {hydra.job.num + 1}"  # of a sweeper that leaves no list
    control = next((line.removeprefix(CONTROL) for line in own if line.startswith(CONTROL)), None)
    jobs = json.loads((folder / JOB_LIST).read_text(encoding="utf-8"))["jobs"]
    number = next(i for i, job in enumerate(jobs) if job["control"] == control and own >= set(job["overrides"]))
    line = f"job {number + 1} of {len(jobs)}: {' '.join(jobs[number]['overrides'])}"
    line += f" (control {control})" if control else ""
    seconds = [job_seconds(job) for job in folder.glob("*/") if is_complete(job)]
    if not seconds:
        return line
    line += f"; {len(seconds)} complete"
    if shares_machine():
        return line
    minutes = round(statistics.median(seconds) * (len(jobs) - len(seconds)) / 60)
    return f"{line}, about {f'{minutes // 60} h {minutes % 60}' if minutes >= 60 else max(1, minutes)} min left"


def job_seconds(folder: Path) -> float:
    """Seconds from the last start of a complete job to its result."""
    started = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["started"]
    return max(0.0, (folder / RESULT).stat().st_mtime - datetime.fromisoformat(started).timestamp())
