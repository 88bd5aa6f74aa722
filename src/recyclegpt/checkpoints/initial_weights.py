"""Start from the backbone of an earlier run, optionally frozen, so that modules can be compared on one backbone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT

SHAPE_INDEPENDENT_FIELDS = ("init_std", "context_length")
"""Fields of the config that no weight depends on."""


def take_backbone(model: RecycleGPT, checkpoint: str | Path, tokenizer_fingerprint: str) -> None:
    """Copy backbone and LM head of a checkpoint into `model`; the recyclable module stays as it is.

    Raises:
        ConfigError: the checkpoint cannot be read, has another shape, or another tokenizer.
    """
    trained = load_trained(checkpoint)
    own, other = asdict(model.config), asdict(trained.model.config)
    problems = [
        f"model.{key}: {own[key]}, but the backbone of {trained.path} has {other[key]}; set model.{key}={other[key]}"
        for key in own
        if key not in SHAPE_INDEPENDENT_FIELDS and own[key] != other[key]
    ]
    if trained.tokenizer.fingerprint != tokenizer_fingerprint:
        problems.append(
            f"backbone.checkpoint: {trained.path} was trained with another tokenizer; "
            f"set data.tokenizer.kind=file data.tokenizer.path={trained.path.parent / 'tokenizer.json'}"
        )
    if problems:
        raise ConfigError(problems)
    model.backbone.load_state_dict(trained.model.backbone.state_dict())
    model.lm_head.load_state_dict(trained.model.lm_head.state_dict())


def freeze_backbone(model: RecycleGPT) -> None:
    """Train the recyclable module alone: backbone and LM head take no gradient."""
    model.backbone.requires_grad_(False)
    model.lm_head.requires_grad_(False)
