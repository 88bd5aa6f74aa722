"""`recyclegpt train`: fit, validate, decode each epoch, and leave a run folder behind."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from recyclegpt.checkpoints.file import list_checkpoints
from recyclegpt.checkpoints.load import FOLDER
from recyclegpt.configuration.hash import config_hash
from recyclegpt.configuration.hydra_app import hydra_run
from recyclegpt.configuration.train_checks import (
    find_problems,
    sweep_problems,
    warn_of_settings_without_effect,
)
from recyclegpt.errors import ConfigError, RunError, Stopped
from recyclegpt.files import write_json
from recyclegpt.runs.folder import PROVENANCE, RESULT, claim, remove_empty_parents
from recyclegpt.runs.result import make_result
from recyclegpt.runs.resume import LOCK, folder_to_continue, is_complete, locked
from recyclegpt.runs.sweep_progress import in_multirun, progress_line
from recyclegpt.runs.training_run import start_afresh, train_run

log = logging.getLogger("recyclegpt")
TRACEBACK = "traceback.txt"


def run(argv: Sequence[str], config_name: str = "train") -> int:
    """The command; `config_name` is the config it begins from."""
    arguments = [*argv, *folder_to_continue(argv, config_name)]
    hydra_run(train_job, config_name, arguments, also_check=find_problems)
    return 0


def train_job(cfg: DictConfig) -> float | None:
    """One run, alone or as a job of a sweep.

    Returns:
        Held-out perplexity of the backbone, for sweepers that optimise.

    Raises:
        ConfigError: all that is wrong with the config.
    """
    folder = Path(cfg.paths.output_dir)
    multirun = in_multirun()
    start_afresh()
    if multirun:
        print(f"\nsweep   {progress_line()}", file=sys.stderr)
    if multirun and (problems := sweep_problems(cfg)):
        raise ConfigError(problems)
    warn_of_settings_without_effect(cfg)
    digest = config_hash(cfg)
    claim(folder, digest)
    with locked(folder):
        begun = claim(folder, digest)  # again: another process may have been here while this one waited
        if begun and is_complete(folder):
            if cfg.resume == "never" and not multirun:
                raise ConfigError(
                    f"{folder}: holds a completed run of this config; choose another folder, or read its {RESULT}"
                )
            log.info("%s is complete, skipped", folder)
            return None
        if begun and cfg.resume == "never" and list_checkpoints(folder / FOLDER):
            raise ConfigError(
                f"{folder}: holds an unfinished run of this config; resume=auto goes on with it, "
                "or choose another folder"
            )
        provenance = _changed_at(folder / PROVENANCE)
        try:
            return train_run(cfg, folder, digest)
        except BaseException as error:
            if isinstance(error, ConfigError) and _changed_at(folder / PROVENANCE) == provenance:
                _leave_no_trace(folder)
                raise
            told = _told(error, cfg, folder, digest)
            if told is error:
                raise
            raise told from error


def _changed_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _leave_no_trace(folder: Path) -> None:
    """Remove the folder that Hydra has made for a run that did not begin; one that was there before stays."""
    if {path.name for path in folder.iterdir()} <= {".hydra", "train.log", LOCK}:
        shutil.rmtree(folder)
        remove_empty_parents(folder)


def _told(error: BaseException, cfg: DictConfig, folder: Path, digest: str) -> BaseException:
    """Leave a record of what ended a run, and say it as the program's own errors do."""
    if isinstance(error, SIGTERMException):  # it came in the moment before our own handler was there
        error = Stopped("stopped by SIGTERM; the same command with resume=auto goes on", 128 + signal.SIGTERM)
    elif isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        # Lightning answers a second Ctrl-C, which stops at once, with sys.exit.
        error = Stopped("stopped by Ctrl-C at once; the same command with resume=auto goes on", 128 + signal.SIGINT)
    elif not isinstance(error, ConfigError | RunError | Stopped):
        (folder / TRACEBACK).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        log.error("%s failed, see its %s: %s", folder, TRACEBACK, error)
    write_json(folder / RESULT, make_result("failed", digest, cfg.seed, error))
    return error
