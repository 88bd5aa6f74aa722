"""Whether this process runs a job of a sweep, and whether other jobs run on the same machine meanwhile."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def in_multirun() -> bool:
    """Whether this process runs a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def shares_machine() -> bool:
    """Whether the launcher of this multirun starts several jobs at a time here, so that they slow each other down."""
    if not in_multirun():
        return False
    launcher = HydraConfig.get().launcher
    target = str(launcher.get("_target_"))
    if "joblib" in target:
        return bool(launcher.get("n_jobs", -1) != 1)
    return target.endswith("LocalLauncher")  # submitit on this machine starts all jobs at once
