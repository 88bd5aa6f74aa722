"""Where a run came from: code, command, versions, machine, data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from recyclegpt.files import write_json
from recyclegpt.hardware.device import cpu_name
from recyclegpt.runs.folder import PROVENANCE, read_provenance

FORMAT = 1
PACKAGES = ("recyclegpt", "torch", "lightning", "hydra-core", "omegaconf", "datasets", "tokenizers", "numpy")


def write_provenance(folder: Path, config_hash: str, **facts: Any) -> None:
    """Write `provenance.json` into a run folder, whole or not at all.

    A run that resumes in its folder keeps what was written before, oldest first, under `earlier_starts`.

    Args:
        folder: run folder; made when missing.
        config_hash: of the resolved config.
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
