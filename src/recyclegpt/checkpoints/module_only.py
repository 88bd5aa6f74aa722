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

BACKBONE_SYMLINK = "backbone"
"""Name in a run folder of a link to a backbone that has moved."""


def load_backbone_of(
    stored: Mapping[str, Any], recycle: RecycleConfig, checkpoint: Path, device: torch.device | str
) -> tuple[RecycleGPT, Path]:
    """The fp32 backbone that a checkpoint names, with a fresh module, and the backbone's folder or GGUF file.

    Args:
        checkpoint: its file; a link `backbone` in its run folder takes precedence over the stored path.

    Raises:
        ConfigError: the backbone is missing, or is not the one that the module was trained on.
    """
    reference = stored["backbone"]
    link = checkpoint.parent.parent / BACKBONE_SYMLINK
    path = str(link) if link.exists() else reference["path"]
    try:
        backbone = PretrainedBackbone(path, reference["revision"])
    except ConfigError as error:
        raise ConfigError(
            [f"checkpoint: {checkpoint} holds the recyclable module alone; its backbone cannot be read:"]
            + [f"backbone: {problem.removeprefix('path: ')}" for problem in error.problems]
            + [f"backbone: if it has moved, link it: ln -s NEW_PLACE {link}"]
        ) from error
    shape = {key: value for key, value in asdict(backbone.config).items() if key in stored["model"]}
    if backbone.fingerprint() != reference["fingerprint"] or any(stored["model"][k] != v for k, v in shape.items()):
        raise ConfigError(f"checkpoint: {checkpoint} needs another backbone than {path}; link it: ln -s PLACE {link}")
    return backbone.load(recycle, device), backbone.folder
