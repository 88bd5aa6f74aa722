"""What a job of a multirun has beside a single run: company, a place in a row, and a launcher."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.recyclegpt_controlled_sweeper.job_list import CONTROL
from hydra_plugins.recyclegpt_controlled_sweeper.job_list import FILE_NAME as JOB_LIST
from recyclegpt.runs.folder import PROVENANCE, RESULT


def in_multirun() -> bool:
    """Whether this process runs a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def runs_beside_others(launcher: Mapping[str, Any] | DictConfig) -> bool:
    """Whether a launcher starts several jobs at a time on one machine, so that their speeds disturb each other."""
    target = str(OmegaConf.select(OmegaConf.create(dict(launcher)), "_target_") or "")
    if "joblib" in target:
        return launcher.get("n_jobs", -1) != 1
    return target.endswith("LocalLauncher")  # submitit on this machine starts all jobs at once


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
    if runs_beside_others(hydra.launcher):
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
