"""Checkpoints that hold the recyclable module alone, and name the pretrained backbone it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleConfig, RecycleGPT
from recyclegpt.models.huggingface import PretrainedBackbone

LINK = "backbone"
"""Name in a run folder under which a backbone that has moved is looked for."""
KEPT = "recyclable."
"""Beginning of the names of weights that such a checkpoint holds."""


def only_kept(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a LightningModule that its checkpoint keeps when the backbone stays where it is."""
    return {key: value for key, value in state_dict.items() if key.startswith(f"model.{KEPT}")}


def load_backbone_of(
    stored: Mapping[str, Any], recycle: RecycleConfig, checkpoint: Path, device: torch.device | str
) -> tuple[RecycleGPT, Path]:
    """The backbone that a checkpoint names, with a module whose weights have yet to be filled in, and its folder.

    In fp32 whatever it was trained beside, so that all of it can compute in any format.

    Args:
        stored: the checkpoint's hyper-parameters.
        recycle: shape of the module.
        checkpoint: its file, for messages, and because a `backbone` beside `checkpoints/` is looked at first.
        device: where to.

    Raises:
        ConfigError: the backbone is not there, or is not the one that the module was trained on.
    """
    reference = stored["backbone"]
    wanted = {"path": str, "revision": str | None, "fingerprint": str}
    if not isinstance(reference, dict) or not all(isinstance(reference.get(k), kind) for k, kind in wanted.items()):
        raise ConfigError(f"checkpoint: {checkpoint} does not tell where its backbone lies; use another")
    link = checkpoint.parent.parent / LINK
    path = str(link) if link.is_dir() else reference["path"]
    try:
        backbone = PretrainedBackbone(path, reference["revision"])
    except ConfigError as error:
        raise ConfigError(
            [f"checkpoint: {checkpoint} holds the recyclable module alone; its backbone cannot be read:"]
            + [f"backbone: {problem.removeprefix('path: ')}" for problem in error.problems]
            + [f"backbone: if it has moved, link it: ln -s NEW_PLACE {link}"]
        ) from error
    if backbone.fingerprint() != reference["fingerprint"]:
        raise ConfigError(
            f"checkpoint: {checkpoint} was trained on another backbone than what lies in {path} now; "
            f"link the right one: ln -s ITS_PLACE {link}"
        )
    shape = {key: value for key, value in asdict(backbone.config).items() if key in stored["model"]}
    if differing := [key for key, value in shape.items() if stored["model"][key] != value]:
        raise ConfigError(
            f"checkpoint: {checkpoint} names {', '.join(differing)} otherwise than its backbone in {path}; use another"
        )
    return backbone.load(recycle, device), backbone.folder
