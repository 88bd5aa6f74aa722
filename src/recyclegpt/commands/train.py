"""`recyclegpt train`: fit, validate, decode each epoch, and leave a run folder behind."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from recyclegpt.checkpoints.file import list_checkpoints
from recyclegpt.checkpoints.load import FOLDER
from recyclegpt.configuration.compose import config_hash, value_problems
from recyclegpt.configuration.hydra_app import hydra_run, in_multirun
from recyclegpt.configuration.train_checks import sweep_problems
from recyclegpt.errors import ConfigError, RunError, Stopped
from recyclegpt.files import write_json
from recyclegpt.runs.folder import RESULT, claim, is_complete, locked, progress_line, remove_if_unused
from recyclegpt.runs.result import make_result
from recyclegpt.runs.resume import register_run_folder
from recyclegpt.runs.trainer import reset_globals
from recyclegpt.runs.training_run import fit, open_folder, prepare_run

log = logging.getLogger("recyclegpt")
TRACEBACK = "traceback.txt"


def run(argv: Sequence[str], config_name: str = "train") -> int:
    """The command; `config_name` is the config it begins from."""
    register_run_folder()
    hydra_run(train_job, config_name, argv)
    return 0


def train_job(cfg: DictConfig) -> float | None:
    """One run, alone or as a job of a sweep.

    Returns:
        Held-out perplexity of the backbone, for sweepers that optimise.

    Raises:
        ConfigError: all that is wrong with the config.
    """
    folder = Path(cfg.paths.output_dir)
    reset_globals()
    try:
        if problems := value_problems(cfg) or (sweep_problems(cfg) if in_multirun() else []):
            raise ConfigError(problems)
        if in_multirun():
            print(f"\nsweep   {progress_line()}", file=sys.stderr)
        digest = config_hash(cfg)
        claim(folder, digest)
        with locked(folder):
            # Again: another process may have been here while this one waited.
            if claim(folder, digest) and _is_done(cfg, folder):
                return None
            return _train(cfg, folder, digest)
    finally:
        remove_if_unused(folder)


def _is_done(cfg: DictConfig, folder: Path) -> bool:
    """Whether a folder's run is complete, so that it is skipped; a run that is not to be resumed is refused."""
    complete = is_complete(folder)
    if cfg.resume == "never" and (not in_multirun() if complete else list_checkpoints(folder / FOLDER)):
        state = "complete" if complete else "unfinished (resume=auto)"
        raise ConfigError(f"{folder}: holds this run, {state}; choose another folder")
    if complete:
        log.info("%s is complete, skipped", folder)
    return complete


def _train(cfg: DictConfig, folder: Path, digest: str) -> float | None:
    started = False
    try:
        run = prepare_run(cfg, folder, digest)
        if run.trainer.is_global_zero:
            open_folder(cfg, run, folder, digest)
        started = True
        return fit(cfg, run, folder, digest)
    except BaseException as error:
        if isinstance(error, ConfigError) and not started:
            raise
        said = _as_ours(error)
        if isinstance(said, Stopped) and in_multirun():  # its folder is named by the time, or by a tag
            said.message = said.message.replace("resume=auto", f"sweep.tag={cfg.sweep.tag} resume=auto")
        try:
            if not isinstance(said, ConfigError | RunError | Stopped):
                (folder / TRACEBACK).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
                log.error("%s failed, see its %s: %s", folder, TRACEBACK, error)  # noqa: TRY400
            write_json(folder / RESULT, make_result("failed", digest, cfg.seed, said))
        except OSError as unwritable:  # the error itself says more
            log.error("%s does not say why the run ended: %s", folder / RESULT, unwritable.strerror)  # noqa: TRY400
        if said is error:
            raise
        raise said from error


def _as_ours(error: BaseException) -> BaseException:
    """Signals that our own handlers could not answer, as `Stopped`; a metric that is not there, as a `RunError`."""
    if isinstance(error, SIGTERMException):  # it came in the moment before our own handler was there
        return Stopped("stopped by SIGTERM; resume with the same command and resume=auto", 128 + signal.SIGTERM)
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        # Lightning answers a second Ctrl-C, which stops at once, with sys.exit.
        return Stopped("stopped at once by Ctrl-C; resume with the same command and resume=auto", 128 + signal.SIGINT)
    if isinstance(error, RuntimeError) and str(error).startswith("Early stopping conditioned on"):
        return RunError(f"callbacks: {error}")
    return error
