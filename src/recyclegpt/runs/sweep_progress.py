"""Where a sweep stands: `job 3 of 12, about 9 min left`."""

from __future__ import annotations

import json
import statistics
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from hydra_plugins.recyclegpt_controlled_sweeper.job_list import CONTROL
from hydra_plugins.recyclegpt_controlled_sweeper.job_list import FILE_NAME as JOB_LIST
from recyclegpt.configuration.hydra_app import shares_machine
from recyclegpt.runs.folder import PROVENANCE, RESULT, is_complete


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
