"""`hydra.main` with our exit codes: a mistake is a `ConfigError`, and `sys.argv` stays whole inside the task."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recyclegpt.configuration.compose import VERSION_BASE, expand_home, explain_composition, find_conf, register
from recyclegpt.errors import ConfigError


def hydra_run(
    task: Callable[[DictConfig], Any], config_name: str, argv: Sequence[str], *, conf_dir: Path | None = None
) -> Any:
    """Run a task under Hydra with these overrides and flags, once or as a multirun.

    Inside the task `sys.argv` is what the program was started with, command word included, because Lightning's DDP
    launcher starts its children from it; Hydra itself sees only overrides and flags.

    Returns:
        What the task returned; None of a multirun, and where a flag asked only to show something.

    Raises:
        ConfigError: Hydra cannot compose the config; a flag would unpickle a file; or the task raised it (in a multirun
            the other jobs have run then).
    """
    for argument in argv:
        flag = argument.partition("=")[0]
        if flag.startswith("--e") and "--experimental-rerun".startswith(flag):  # argparse takes abbreviations
            raise ConfigError(f"{argument}: would unpickle a file, which can run any code; give the overrides instead")
    register()
    folder = (conf_dir or find_conf()).resolve()
    whole, started, value, failure = list(sys.argv), False, None, None

    @functools.wraps(task)  # Hydra names the job after the task's module
    def job(cfg: DictConfig) -> Any:
        nonlocal started, value, failure
        started = True
        with mock.patch.object(sys, "argv", whole):
            try:
                value = task(cfg)
            except Exception as error:
                if in_multirun():
                    raise
                failure = error  # raised below: Hydra would add a line of its own
        return value

    # Hydra's parser takes overrides in one row.
    arguments = sorted(expand_home(argv), key=lambda argument: argument not in ("-m", "--multirun"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come through; Hydra would print them, shortened, and exit
    with mock.patch.object(sys, "argv", [sys.argv[0], *arguments]), _logging_kept():
        try:
            hydra.main(config_path=str(folder), config_name=config_name, version_base=VERSION_BASE)(job)()
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RuntimeError) as error:
            if started or isinstance(error, ConfigError):
                raise
            raise ConfigError(explain_composition(error)) from error
    if failure is not None:
        raise failure
    return value


def in_multirun() -> bool:
    """Whether this process runs a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def shares_machine() -> bool:
    """Whether the launcher of this multirun starts several jobs at a time here, so that they slow each other down."""
    if not in_multirun():
        return False
    launcher = HydraConfig.get().launcher
    if "joblib" in launcher._target_:
        return bool(launcher.n_jobs != 1)
    return str(launcher._target_).endswith("LocalLauncher")  # submitit on this machine starts all jobs at once


def write_hydra_folder(cfg: DictConfig, folder: Path) -> None:
    """Write `.hydra/`: the config of a run, Hydra's own node and the overrides.

    `hydra.output_subdir` is null, so that Hydra does not overwrite these in the folder of a run that refuses to start.
    """
    path = folder / ".hydra"
    path.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, path / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": HydraConfig.get()}), path / "hydra.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, path / "overrides.yaml")


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
