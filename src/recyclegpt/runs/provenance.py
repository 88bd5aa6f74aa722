"""Where a run came from: code, command, versions, machine, data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from recyclegpt.errors import ConfigError
from recyclegpt.files import write_whole
from recyclegpt.hardware.device import cpu_name

FORMAT = 1
FILE_NAME = "provenance.json"
PACKAGES = (
    "recyclegpt",
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "datasets",
    "tokenizers",
    "tensorboard",
    "numpy",
)


def collect(config_hash: str, argv: Sequence[str] | None = None, **facts: Any) -> dict[str, Any]:
    """All that is known of a run at its start, as plain data.

    Args:
        config_hash: of the resolved config.
        argv: the command; None: that of this process.
        **facts: what the caller knows, such as `data_fingerprint` and `tokenizer_fingerprint`; a fact of a name
            collected here (`device`, say) takes its place.
    """
    return {
        "format": FORMAT,
        "config_hash": config_hash,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(sys.argv if argv is None else argv),
        "git": git_state(Path(__file__)),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "data_fingerprint": None,
        "tokenizer_fingerprint": None,
        **facts,
    }


def write_provenance(folder: Path | str, config_hash: str, argv: Sequence[str] | None = None, **facts: Any) -> Path:
    """Write `provenance.json` into a run folder, whole or not at all.

    A run that resumes in its folder keeps what was written before, oldest first, under `earlier_starts`.

    Args:
        folder: run folder; made when missing.
        config_hash: of the resolved config.
        argv: the command; None: that of this process.
        **facts: as in `collect`; JSON values.

    Raises:
        ConfigError: the folder belongs to a run of another config.
    """
    path = Path(folder) / FILE_NAME
    earlier = read_provenance(folder)
    if earlier is not None and earlier.get("config_hash") != config_hash:
        raise ConfigError(
            f"{path}: belongs to a run of another config (hash {earlier.get('config_hash')}, now {config_hash}); "
            "choose another folder"
        )
    facts_now = collect(config_hash, argv, **facts)
    starts = [] if earlier is None else [*earlier.pop("earlier_starts", []), earlier]
    facts_now["earlier_starts"] = starts
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(facts_now, indent=2, allow_nan=False) + "\n")
    return path


def read_provenance(folder: Path | str) -> dict[str, Any] | None:
    """What a run folder's `provenance.json` holds; None where there is none.

    Raises:
        ConfigError: the file is not such JSON.
    """
    path = Path(folder) / FILE_NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path}: is not readable JSON ({error}); move the folder away or choose another") from error
    if not isinstance(facts, dict):
        raise ConfigError(f"{path}: is not a JSON object; move the folder away or choose another")
    return facts


def git_state(file: Path) -> Mapping[str, Any] | None:
    """Commit, whether the working tree differs from it, and a hash of the difference; None outside a repository.

    None too where the repository does not track `file`, as when the package is installed inside someone's project.
    """
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    difference = _git(folder, "diff", "HEAD")
    return {
        "commit": None if commit is None else commit.decode().strip(),
        "dirty": None if status is None else bool(status.strip()),
        "diff_sha256": hashlib.sha256(difference).hexdigest() if difference else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
