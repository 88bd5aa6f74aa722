"""`hydra.main` with our exit codes: a mistake is a `ConfigError`, and `sys.argv` stays whole inside the task."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recyclegpt.configuration.compose import VERSION_BASE, find_conf, register
from recyclegpt.configuration.composition_errors import explain_composition
from recyclegpt.configuration.multirun import in_multirun
from recyclegpt.errors import ConfigError


def hydra_run(
    task: Callable[[DictConfig], Any], config_name: str, argv: Sequence[str], *, conf_dir: Path | None = None
) -> Any:
    """Run a task under Hydra, once or as a multirun.

    Inside the task `sys.argv` is what the program was started with, command word included, because Lightning's DDP
    launcher starts its children from it; Hydra itself sees only overrides and flags.

    Args:
        task: called with the config of the run, or of each job.
        config_name: the primary config.
        argv: overrides and Hydra's flags, without the command word.
        conf_dir: folder of the groups; default: `find_conf()`.

    Returns:
        What the task returned; None of a multirun, and where a flag asked only to show something.

    Raises:
        ConfigError: Hydra cannot compose the config; or the task raised it. In a multirun the other jobs have run then.
    """
    register()
    folder = (conf_dir or find_conf()).resolve()
    job = _Job(task)
    # Hydra's parser takes overrides in one row.
    arguments = sorted(argv, key=lambda argument: argument not in ("-m", "--multirun"))
    with _swapped(sys, "argv", [sys.argv[0], *arguments]), _full_errors(), _logging_kept():
        try:
            hydra.main(config_path=str(folder), config_name=config_name, version_base=VERSION_BASE)(job.wrapped())()
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            if job.started or isinstance(error, ConfigError):
                raise
            raise ConfigError(explain_composition(error)) from error
    if job.error is not None:
        raise job.error
    return job.value


def write_hydra_folder(cfg: DictConfig, folder: Path) -> None:
    """Write `.hydra/`: the config of a run, Hydra's own node and the overrides.

    `hydra.output_subdir` is null, so that Hydra does not overwrite these in the folder of a run that refuses to start.
    """
    path = folder / ".hydra"
    path.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, path / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": HydraConfig.get()}), path / "hydra.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, path / "overrides.yaml")


@dataclass
class _Job:
    """The task as Hydra calls it, and what became of it."""

    task: Callable[[DictConfig], Any]
    argv: list[str] = field(default_factory=lambda: list(sys.argv))
    started: bool = False
    value: Any = None
    error: Exception | None = None

    def wrapped(self) -> Callable[[DictConfig], Any]:
        @functools.wraps(self.task)  # Hydra names the job after the task's module
        def job(cfg: DictConfig) -> Any:
            self.started = True
            with _swapped(sys, "argv", list(self.argv)):
                try:
                    self.value = self.task(cfg)
                except Exception as error:
                    if in_multirun():
                        raise
                    self.error = error  # raised by `hydra_run`: Hydra would add a line of its own
                except SystemExit as leaving:
                    # `Stopped` ends a sweep; a plain `sys.exit` somewhere in a job does not.
                    if in_multirun() and type(leaving) is SystemExit:
                        raise RuntimeError(f"the job ended itself by sys.exit({leaving.code!r})") from leaving
                    raise
            return self.value

        return job


@contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _full_errors() -> Iterator[None]:
    """Let exceptions through: Hydra would otherwise print them, shortened, and exit."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Put the root logger and Hydra's record of the running config back as they were."""
    root, instance = logging.getLogger(), HydraConfig.instance()
    handlers, level, config = list(root.handlers), root.level, instance.cfg
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        instance.cfg = config  # Hydra leaves it behind after --cfg
