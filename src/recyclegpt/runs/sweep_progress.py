"""Where a sweep stands: `job 3 of 12, about 9 min left`."""

from __future__ import annotations

import json
import statistics
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from hydra_plugins.recyclegpt_controlled_sweeper.job_list import CONTROL
from hydra_plugins.recyclegpt_controlled_sweeper.job_list import FILE_NAME as JOB_LIST
from recyclegpt.configuration.multirun import in_multirun, shares_machine
from recyclegpt.runs.folder import PROVENANCE, RESULT


def progress_line() -> str | None:
    """`job 3 of 12: seed=1 ...; 2 complete, about 9 min left`, of the job this process runs; None of a single run."""
    if not in_multirun():
        return None
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir)
    own = set(hydra.overrides.task)
    control = next((line.removeprefix(CONTROL) for line in own if line.startswith(CONTROL)), None)
    try:
        jobs = json.loads((folder / JOB_LIST).read_text(encoding="utf-8"))["jobs"]
        number = next(i for i, job in enumerate(jobs) if job["control"] == control and own >= set(job["overrides"]))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return f"job {hydra.job.num + 1}"  # of a sweeper that leaves no list
    line = f"job {number + 1} of {len(jobs)}: {' '.join(jobs[number]['overrides'])}"
    line += f" (control {control})" if control else ""
    seconds = [s for s in map(job_seconds, folder.glob("*/")) if s is not None]
    if not seconds:
        return line
    line += f"; {len(seconds)} complete"
    if shares_machine():
        return line
    return f"{line}, about {_minutes(statistics.median(seconds) * (len(jobs) - len(seconds)))} left"


def job_seconds(folder: Path) -> float | None:
    """Seconds from the last start of a complete job to its result; None of any other folder."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        begin = datetime.fromisoformat(provenance["started"]).timestamp()
        seconds = (folder / RESULT).stat().st_mtime - begin
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return max(0.0, seconds) if result.get("status") == "completed" else None


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
