"""`jobs.json` in a sweep's folder: every job that was asked for, whether it has run or not."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json

FILE_NAME = "jobs.json"
FORMAT = 1
CONTROL = "++sweep.control="
NOT_COMPARED = ("hydra", "paths", "logger", "name", "sweep", "resume")
"""Settings that say where runs are kept and how they are watched; the config hash leaves them out too."""


def add_jobs(folder: Path, jobs: Sequence[Sequence[str]], shared: Collection[str] = ()) -> None:
    """Write the jobs of a sweep; those written by an earlier start in the same folder stay, ahead of new ones.

    Overrides in `shared` hold for all jobs and are left out of each.

    Raises:
        ConfigError: the folder holds a sweep whose shared settings are others, so that its jobs could not be compared.
    """
    settings = sorted(line for line in shared if line.lstrip("+~").partition("=")[0].split(".")[0] not in NOT_COMPARED)
    document = _read(folder / FILE_NAME)
    before = document.get("shared", settings)
    if document and before != settings:
        only = [f"it has {' '.join(sorted(set(before) - set(settings))) or 'nothing more'}"]
        only += [f"this command {' '.join(sorted(set(settings) - set(before))) or 'nothing more'}"]
        raise ConfigError(
            f"{folder}: holds a sweep with other settings ({'; '.join(only)}); nothing was run. Choose another folder "
            "(sweep.tag=...), or move this one away"
        )
    listed = list(document.get("jobs", []))
    for job in jobs:
        control = next((line.removeprefix(CONTROL) for line in job if line.startswith(CONTROL)), None)
        entry: dict[str, object] = {
            "overrides": [line for line in job if not line.startswith(CONTROL) and line not in shared],
            "control": control,
        }
        if entry not in listed:
            listed.append(entry)
    write_json(folder / FILE_NAME, {"format": FORMAT, "shared": settings, "jobs": listed})


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return dict(document) if document["format"] == FORMAT and isinstance(document["jobs"], list) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # none yet, or a damaged one: it is written again
