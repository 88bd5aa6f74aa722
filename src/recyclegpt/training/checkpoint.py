"""From a checkpoint back to a model: the shapes are stored beside the weights, the tokenizer in the same folder."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recyclegpt.data import TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT

FORMAT = 1
FOLDER = "checkpoints"
TOKENIZER = "tokenizer.json"


class Trained(NamedTuple):
    """A model read from a checkpoint."""

    model: RecycleGPT
    tokenizer: TextTokenizer
    config: dict[str, Any]
    """The resolved config it was trained with."""
    path: Path
    step: int


def hyper_parameters(model: RecycleGPT, config: dict[str, Any]) -> dict[str, Any]:
    """What every checkpoint says of its model: plain Python, so that `torch.load(weights_only=True)` reads it."""
    return {
        "format": FORMAT,
        "model": asdict(model.config),
        "recycle": asdict(model.recycle_config),
        "config": config,
    }


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps in a run folder or its `checkpoints/`; None if there is none."""
    candidates = [
        (int(match.group(1)), path)
        for place in (folder, folder / FOLDER)
        for path in place.glob("step_*.ckpt")
        if (match := re.fullmatch(r"step_(\d+)\.ckpt", path.name))
    ]
    return max(candidates)[1] if candidates else None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint a user means by a file, a run folder, or a folder of run folders (then the newest run's).

    Raises:
        ConfigError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(
            f"checkpoint: {path} does not exist; give a run folder (outputs/train/NAME/TIME) or a .ckpt file"
        )
    found = newest_checkpoint(path)
    if found is None:
        runs = [run for run in (newest_checkpoint(folder.parent) for folder in path.rglob(FOLDER)) if run is not None]
        found = max(runs, key=lambda run: run.stat().st_mtime, default=None)
    if found is None:
        raise ConfigError(f"checkpoint: {path} holds no step_*.ckpt; train first, or give another run folder")
    return found


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """Read model and tokenizer of a run folder or checkpoint file. Only tensors and plain values are unpickled.

    Raises:
        ConfigError: there is no checkpoint, or it is damaged, foreign, or of another format.
    """
    found = find_checkpoint(path)
    try:
        checkpoint = torch.load(found, map_location=device, weights_only=True, mmap=True)
    except Exception as error:
        raise ConfigError(
            f"checkpoint: {found} cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            "it is damaged or not a checkpoint of this project"
        ) from error
    stored = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ConfigError(
            f"checkpoint: {found} is not a recyclegpt checkpoint of format {FORMAT}; "
            "train again, or use the version that wrote it"
        )
    known = {field.name for field in fields(ModelConfig)}
    with torch.device("meta"):
        model = RecycleGPT(
            ModelConfig(**{key: value for key, value in stored["model"].items() if key in known}),
            RecycleConfig(**stored["recycle"]),
        )
    weights = {
        key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items() if key.startswith("model.")
    }
    model.to_empty(device=device)
    model.rotary.fill()
    if model.config.tie_embeddings:
        model.lm_head.weight = model.backbone.embed_tokens.weight
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"checkpoint: {found} does not fit the shape it names: {error}") from error
    tokenizer = found.parent / TOKENIZER
    if not tokenizer.is_file():
        raise ConfigError(f"checkpoint: {tokenizer} is missing; copy it from the run the checkpoint comes from")
    return Trained(
        model.eval(), TextTokenizer.from_file(tokenizer), stored["config"], found, int(checkpoint.get("global_step", 0))
    )
