"""`jobs.json` in a sweep's folder: every job that was asked for, whether it has run or not."""

import json
from collections.abc import Container, Sequence
from pathlib import Path

FILE_NAME = "jobs.json"
FORMAT = 1
CONTROL = "++sweep.control="


def add_jobs(folder: Path, jobs: Sequence[Sequence[str]], shared: Container[str] = ()) -> None:
    """Write the jobs of a sweep; those written by an earlier start in the same folder stay, ahead of new ones.

    Overrides in `shared` hold for all jobs and are left out: they may be given otherwise when a sweep is continued.
    """
    listed = _read(folder / FILE_NAME)
    for job in jobs:
        control = next((line.removeprefix(CONTROL) for line in job if line.startswith(CONTROL)), None)
        entry: dict[str, object] = {
            "overrides": [line for line in job if not line.startswith(CONTROL) and line not in shared],
            "control": control,
        }
        if entry not in listed:
            listed.append(entry)
    temporary = folder / f".{FILE_NAME}.tmp"
    temporary.write_text(json.dumps({"format": FORMAT, "jobs": listed}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE_NAME)


def _read(path: Path) -> list[dict[str, object]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return list(document["jobs"]) if document["format"] == FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none yet, or a damaged one: it is written anew
