"""Which run a command goes on with, and whether that can be done exactly: all that speaks against it, told at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from recyclegpt.checkpoints.load import (
    find_checkpoint,
    newest_sound_checkpoint,
    read_own_checkpoint,
    weight_problems,
)
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.hash import config_hash
from recyclegpt.configuration.hydra_app import parse_flags
from recyclegpt.configuration.interpolations import is_multirun
from recyclegpt.data import TextDataModule
from recyclegpt.errors import ConfigError
from recyclegpt.runs.folder import RESULT, read_hash
from recyclegpt.runs.model import BuiltModel
from recyclegpt.runs.provenance import read_provenance

log = logging.getLogger("recyclegpt")
LOCK = ".lock"
ORPHANS_S = 15
"""Seconds to wait for a folder's lock."""
NEEDED = ("loops", "callbacks", "optimizer_states", "lr_schedulers")
"""What a checkpoint holds besides weights, without which training cannot go on."""


def folder_to_continue(argv: Sequence[str], config_name: str = "train") -> list[str]:
    """With `resume=auto` and no folder given: the newest unfinished run of the same name and config, as an override."""
    flags = parse_flags(argv)
    wanted = "resume=auto" in flags.overrides and flags.runs and not flags.multirun
    if not wanted or any(override.startswith("hydra.run.dir=") for override in flags.overrides):
        return []
    cfg = compose_or_explain(config_name, flags.overrides, with_hydra=True)
    if is_multirun(cfg):
        return []
    digest = config_hash(cfg)
    found = [
        folder
        for folder in Path("outputs/train", cfg.name).glob("*/")
        if _hash_or_none(folder) == digest and not is_complete(folder)
    ]
    quoted = str(max(found)).replace("\\", "\\\\").replace("'", "\\'") if found else ""
    return [f"hydra.run.dir='{quoted}'"] if found else []


def _hash_or_none(folder: Path) -> str | None:
    try:
        return read_hash(folder)
    except ConfigError as error:  # another run's trouble
        log.warning("%s", error)
        return None


def is_complete(folder: Path) -> bool:
    """Whether a run has ended as it should."""
    try:
        return bool(json.loads((folder / RESULT).read_text(encoding="utf-8"))["status"] == "completed")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process from training in a run folder; a process that dies lets go of it.

    Raises:
        ConfigError: another process holds it.
    """
    if getattr(rank_zero_only, "rank", 0):  # the first process of a job holds it for the others
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        # The data workers of a run that was killed hold its lock until they notice, which takes five seconds.
        lock.acquire(timeout=ORPHANS_S)
    except Timeout as error:
        raise ConfigError(
            f"{folder}: another process trains in this folder; wait for it, stop it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _choose(resume: str, folder: Path) -> Path | None:
    """The folder's own newest checkpoint, before the one it was begun from: the same command has to go on."""
    own = newest_sound_checkpoint(folder)
    if resume == "auto":
        if own is None and (first := _begun_from(folder)) is not None:
            return find_checkpoint(first)
        return own
    given = find_checkpoint(resume)
    if own is None or folder.resolve() in given.resolve().parents:  # one of its own, to go back to
        return given
    log.info("%s goes on from its own %s; it was begun from %s", folder, own.name, given)
    return own


def _begun_from(folder: Path) -> str | None:
    """The checkpoint that the run in a folder was begun from, as its first start noted."""
    provenance = read_provenance(folder)
    if provenance is None:
        return None
    first = next(iter(provenance.get("earlier_starts") or []), provenance)
    found = first.get("resumed_from") if isinstance(first, dict) else None
    return found if isinstance(found, str) else None


class ResumePoint(NamedTuple):
    """A checkpoint that a run goes on from."""

    path: Path
    step: int
    content: dict[str, Any]


def checkpoint_to_resume(cfg: DictConfig, folder: Path, num_steps: int) -> ResumePoint | None:
    """The checkpoint this run goes on from; None to begin at step 0.

    Args:
        cfg: config of the run.
        folder: its folder, where `resume=auto` looks.
        num_steps: of the whole run.

    Raises:
        ConfigError: the checkpoint is damaged, foreign or incomplete, or leaves nothing to train.
    """
    if cfg.resume == "never":
        return None
    path = _choose(cfg.resume, folder)
    if path is None:
        return None
    checkpoint = read_own_checkpoint(path)
    if missing := [key for key in NEEDED if key not in checkpoint]:
        raise ConfigError(
            f"resume: {path} lacks {', '.join(missing)}, so that training cannot go on from it; "
            "use one that `recyclegpt train` wrote, or begin from its weights with backbone.checkpoint=..."
        )
    step = int(checkpoint.get("global_step", 0))
    if cfg.resume != "auto" and step >= num_steps and folder.resolve() not in path.resolve().parents:
        raise ConfigError(
            f"resume: {path} stands after step {step} and this run has {num_steps}, so nothing is left to train; "
            "raise trainer.max_epochs or give an earlier checkpoint"
        )
    return ResumePoint(path, step, checkpoint)


def check_resumable(
    begun: ResumePoint, cfg: DictConfig, made: BuiltModel, datamodule: TextDataModule, world_size: int
) -> None:
    """Make sure that a run can go on from a checkpoint exactly.

    Args:
        begun: the checkpoint.
        cfg: config of the run.
        made: the model, freshly made.
        datamodule: prepared.
        world_size: processes that train together.

    Raises:
        ConfigError: naming every difference of model, optimizer, corpus or number of processes.
    """
    problems = _malformed(begun.content) + _differences(begun.content, cfg, made)
    problems += datamodule.problems_with(TextDataModule.state_in(begun.content), world_size)
    if problems:
        raise ConfigError([f"resume: this run cannot go on from {begun.path}", *problems])


def _malformed(checkpoint: dict[str, Any]) -> list[str]:
    """What Lightning would stumble over: parts of the state that are not what it has written."""
    optimizers = checkpoint["optimizer_states"]
    sound = {
        "loops": isinstance(checkpoint["loops"], dict) and {"fit_loop"} <= checkpoint["loops"].keys(),
        "callbacks": isinstance(checkpoint["callbacks"], dict),
        "optimizer_states": isinstance(optimizers, list)
        and all(isinstance(one, dict) and {"state", "param_groups"} <= one.keys() for one in optimizers),
        "lr_schedulers": isinstance(checkpoint["lr_schedulers"], list)
        and all(isinstance(one, dict) for one in checkpoint["lr_schedulers"]),
    }
    return [
        f"{name}: the checkpoint's is not what training writes; use another checkpoint, or begin from its weights with "
        "backbone.checkpoint=..."
        for name, is_sound in sound.items()
        if not is_sound
    ]


def _differences(checkpoint: dict[str, Any], cfg: DictConfig, made: BuiltModel) -> list[str]:
    stored, model = checkpoint["hyper_parameters"], made.model
    shapes = {"model": asdict(model.config), "recycle": asdict(model.recycle_config)}
    problems = [
        f"{group}.{key}: the checkpoint has {stored[group][key]}, this run {value}; "
        f"set it to the checkpoint's, or start a new run"
        for group, own in shapes.items()
        for key, value in own.items()
        if key in stored[group] and stored[group][key] != value
    ]
    optimizer = stored["config"].get("optimizer") or {}
    if isinstance(optimizer, dict) and optimizer.get("_target_") != cfg.optimizer._target_:
        problems.append(
            f"optimizer: the checkpoint was trained with {optimizer.get('_target_')}, this run has "
            f"{cfg.optimizer._target_}; its state cannot be taken over, so resume with the checkpoint's"
        )
    theirs, own = stored.get("backbone"), made.backbone
    if (theirs is None) != (own is None):
        whole = "holds the whole model" if theirs is None else "holds the recyclable module alone"
        problems.append(f"backbone.frozen: the checkpoint {whole}; set it as it was, or start a new run")
    elif own is not None and (not isinstance(theirs, dict) or theirs.get("fingerprint") != own["fingerprint"]):
        problems.append("model.path: the module was trained on another backbone; give that one, or start a new run")
    if not problems:
        module_only = own is not None
        problems += [f"model: {problem}" for problem in weight_problems(checkpoint["state_dict"], model, module_only)]
    return problems
