"""`jobs.json` in a sweep's folder: every job that was asked for, whether it has run or not."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from recyclegpt.configuration.compose import UNHASHED
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json

FILE_NAME = "jobs.json"
FORMAT = 1
CONTROL = "++sweep.control="


def add_jobs(folder: Path, jobs: Sequence[Sequence[str]], shared: Collection[str] = ()) -> None:
    """Write the jobs of a sweep; those written by an earlier start in the same folder stay, ahead of new ones.

    Overrides in `shared` hold for all jobs and are left out of each.

    Raises:
        ConfigError: the folder holds a sweep whose shared settings are others, so that its jobs could not be compared.
    """
    path = folder / FILE_NAME
    settings = sorted(line for line in shared if line.lstrip("+~").partition("=")[0].split(".")[0] not in UNHASHED)
    empty: dict[str, Any] = {"shared": settings, "jobs": []}
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
    if document["shared"] != settings:
        raise ConfigError(
            f"{folder}: holds a sweep with other settings ({' '.join(document['shared'])}; this command has "
            f"{' '.join(settings)}); choose another folder (sweep.tag=...), or move this one away"
        )
    listed: list[object] = document["jobs"]
    for job in jobs:
        control = next((line.removeprefix(CONTROL) for line in job if line.startswith(CONTROL)), None)
        overrides = [line for line in job if not line.startswith(CONTROL) and line not in shared]
        entry = {"overrides": overrides, "control": control}
        if entry not in listed:
            listed.append(entry)
    write_json(path, {"format": FORMAT, "shared": settings, "jobs": listed})
