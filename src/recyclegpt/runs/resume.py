"""Which run to resume, from which checkpoint, and whether that can be done exactly."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recyclegpt.checkpoints.load import (
    find_checkpoint,
    newest_sound_checkpoint,
    read_own_checkpoint,
    weight_problems,
)
from recyclegpt.configuration.compose import config_hash, folder_name
from recyclegpt.data import TextDataModule
from recyclegpt.data.loaders import state_in
from recyclegpt.errors import ConfigError
from recyclegpt.runs.folder import is_complete, read_provenance
from recyclegpt.runs.model import BuiltModel

log = logging.getLogger("recyclegpt")
NEEDED = ("loops", "callbacks", "optimizer_states", "lr_schedulers")
"""What a checkpoint holds besides weights, without which training cannot resume."""


def register_run_folder() -> None:
    """`${run_folder:TIME}`, which `hydra.run.dir` is: a new folder, or with `resume=auto` the run to resume."""
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def _run_folder(time: str, *, _root_: DictConfig) -> str:
    """`outputs/train/NAME/TIME`; with `resume=auto` the newest unfinished run of the same name and config."""
    runs = Path("outputs/train", folder_name(_root_.name))
    if _root_.resume != "auto":
        return str(runs / time)
    try:
        digest = config_hash(_root_)
    except OmegaConfBaseException:  # a value is missing; the run itself says which
        return str(runs / time)
    found = [folder for folder in runs.glob("*/") if _hash_or_none(folder) == digest and not is_complete(folder)]
    return str(max(found, default=runs / time))


def _hash_or_none(folder: Path) -> object:
    try:
        return (read_provenance(folder) or {}).get("config_hash")
    except ConfigError as error:  # a problem of another run
        log.warning("%s", error)
        return None


def _choose(resume: str, folder: Path) -> Path | None:
    """The folder's own newest checkpoint, else the one it was started from."""
    own = newest_sound_checkpoint(folder)
    if resume == "auto":
        if own is None and (first := _started_from(folder)) is not None:
            return find_checkpoint(first)
        return own
    given = find_checkpoint(resume)
    if own is None or folder.resolve() in given.resolve().parents:  # one of its own, to go back to
        return given
    log.info("%s resumes from its own %s; it was started from %s", folder, own.name, given)
    return own


def _started_from(folder: Path) -> str | None:
    """The checkpoint that the run in a folder was started from, as its first start noted."""
    provenance: Any = read_provenance(folder) or {}
    first = next(iter(provenance.get("earlier_starts", [])), provenance)
    return cast("str | None", first.get("resumed_from"))


def _why_none(cfg: DictConfig, folder: Path) -> str | None:
    """Why no earlier run of this name is resumed: the newest is complete, or of another config."""
    runs = [run for run in Path("outputs/train", folder_name(cfg.name)).glob("*/") if (run / ".hydra").exists()]
    newest = max((run for run in runs if run.resolve() != folder.resolve()), default=None)
    if newest is None or folder.resolve().parent != newest.resolve().parent:
        return None
    if _hash_or_none(newest) == config_hash(cfg):
        return f"the newest run, {newest}, is complete; this is a new one"
    return (
        f"the newest run, {newest}, has another config, so this is a new one; to continue the other from its last "
        f"checkpoint, stop and type resume={newest} in place of resume=auto"
    )


class ResumePoint(NamedTuple):
    """A checkpoint that a run resumes from."""

    path: Path
    step: int
    content: dict[str, Any]


def checkpoint_to_resume(cfg: DictConfig, folder: Path, num_steps: int) -> ResumePoint | None:
    """The checkpoint this run resumes from; None to begin at step 0.

    Raises:
        ConfigError: the checkpoint is damaged, foreign or incomplete, or leaves nothing to train.
    """
    path = None if cfg.resume == "never" else _choose(cfg.resume, folder)
    if path is None:
        if cfg.resume == "auto" and (why := _why_none(cfg, folder)):
            log.warning("resume=auto: %s", why)
        return None
    checkpoint = read_own_checkpoint(path)
    if missing := [key for key in NEEDED if key not in checkpoint]:
        lacking = f"{path} lacks {', '.join(missing)}"
        raise ConfigError(f"resume: {lacking}; use one of `recyclegpt train`, or backbone.checkpoint=...")
    step = int(checkpoint["global_step"])
    if cfg.resume != "auto" and step >= num_steps and folder.resolve() not in path.resolve().parents:
        at = f"{path} is at step {step} of {num_steps}, so nothing is left to train"
        raise ConfigError(f"resume: {at}; raise trainer.max_epochs, or give an earlier checkpoint")
    return ResumePoint(path, step, checkpoint)


def check_resumable(
    point: ResumePoint, cfg: DictConfig, built: BuiltModel, datamodule: TextDataModule, world_size: int
) -> None:
    """Make sure that a run can resume from a checkpoint exactly.

    Raises:
        ConfigError: naming every difference of model, optimizer, corpus or number of processes.
    """
    problems = _differences(point.content, cfg, built)
    problems += datamodule.problems_with(state_in(point.content), world_size)
    if problems:
        raise ConfigError([f"resume: this run cannot resume from {point.path}", *problems])


def _differences(checkpoint: dict[str, Any], cfg: DictConfig, built: BuiltModel) -> list[str]:
    stored, model = checkpoint["hyper_parameters"], built.model
    shapes = {"model": asdict(model.config), "recycle": asdict(model.recycle_config)}
    remedy = "set it to the checkpoint's, or start a new run"
    problems = [
        f"{group}.{key}: the checkpoint has {stored[group][key]}, this run {value}; {remedy}"
        for group, own in shapes.items()
        for key, value in own.items()
        if key in stored[group] and stored[group][key] != value
    ]
    optimizer = stored["config"]["optimizer"]["_target_"]
    if optimizer != cfg.optimizer._target_:
        problems.append(
            f"optimizer: the checkpoint was trained with {optimizer}, this run has {cfg.optimizer._target_}; {remedy}"
        )
    theirs, own_backbone = stored.get("backbone"), built.backbone
    if (theirs is None) != (own_backbone is None):
        whole = "holds the whole model" if theirs is None else "holds the recyclable module alone"
        problems.append(f"backbone.frozen: the checkpoint {whole}; set it as before, or start a new run")
    elif theirs is not None and own_backbone is not None and theirs["fingerprint"] != own_backbone["fingerprint"]:
        problems.append("model.path: the module was trained on another backbone; give that one, or start a new run")
    if not problems:
        found = weight_problems(checkpoint["state_dict"], model, module_only=own_backbone is not None)
        problems += [f"model: {problem}" for problem in found]
    return problems
