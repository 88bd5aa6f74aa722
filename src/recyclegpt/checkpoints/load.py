"""From a checkpoint back to a model: its shape is stored with the weights, the tokenizer in the same folder.

A checkpoint may hold the recyclable module alone, and name the pretrained backbone it belongs to.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from recyclegpt.checkpoints.file import list_checkpoints, read_checkpoint, verify
from recyclegpt.data import TextTokenizer
from recyclegpt.data.loaders import state_in
from recyclegpt.errors import ConfigError
from recyclegpt.gguf_header import is_gguf
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.models.huggingface import PretrainedBackbone
from recyclegpt.models.huggingface.module_folder import with_module
from recyclegpt.models.huggingface.own_layout import MODEL_TYPE, read_own

BACKBONE_SYMLINK = "backbone"
"""Name in a run folder of a link to a backbone that has moved."""


def load_backbone_of(
    stored: Mapping[str, Any], recycle: RecycleConfig, checkpoint: Path, device: torch.device | str
) -> tuple[RecycleGPT, Path]:
    """The fp32 backbone that a checkpoint names, with a fresh module, and the backbone's folder or GGUF file.

    A link `backbone` in the run folder takes precedence over the stored path.

    Raises:
        ConfigError: the backbone is missing, or is not the one that the module was trained on.
    """
    reference = stored["backbone"]
    link = checkpoint.parent.parent / BACKBONE_SYMLINK
    path = str(link) if link.exists() else reference["path"]
    try:
        backbone = PretrainedBackbone(path, reference["revision"])
    except ConfigError as error:
        first = f"checkpoint: {checkpoint} holds the recyclable module alone; link its backbone: ln -s NEW_PLACE {link}"
        raise ConfigError([first, *(problem.replace("path:", "backbone:", 1) for problem in error.problems)]) from error
    shape = {key: value for key, value in asdict(backbone.config).items() if key in stored["model"]}
    if backbone.fingerprint() != reference["fingerprint"] or any(stored["model"][k] != v for k, v in shape.items()):
        raise ConfigError(f"checkpoint: {checkpoint} needs another backbone than {path}; link it: ln -s PLACE {link}")
    return backbone.load(recycle, device), backbone.folder


FORMAT = 1
FOLDER = "checkpoints"
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
"""Of a folder that holds a model and no run: what `export` wrote, or a pretrained backbone."""
_MAX_NAMED = 5
_log = logging.getLogger("recyclegpt")


class LoadedModel(NamedTuple):
    """A model read from a checkpoint."""

    model: RecycleGPT
    tokenizer: TextTokenizer
    config: dict[str, Any]
    """The resolved config it was trained with."""
    path: Path
    step: int
    backbone: Path | None = None
    """Folder or GGUF file of the pretrained backbone that it was adapted to, or is."""

    @property
    def tokenizer_file(self) -> Path:
        """A `tokenizer.json`, or the GGUF file that holds everything."""
        return self.path if self.path == self.backbone else self.path.parent / TOKENIZER


def hyper_parameters(
    model: RecycleGPT, config: dict[str, Any], backbone: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What every checkpoint says of its model: plain Python, so that `torch.load(weights_only=True)` reads it.

    `backbone` (`PretrainedBackbone.reference`) says where the pretrained backbone is, if the checkpoint lacks it.
    """
    return {
        "format": FORMAT,
        "model": asdict(model.config),
        "recycle": asdict(model.recycle_config),
        "config": config,
        **({} if backbone is None else {"backbone": backbone}),
    }


def newest_sound_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint in a run folder or its `checkpoints/`. Damaged ones are reported and skipped.

    Returns:
        None if the folder holds no checkpoint at all.

    Raises:
        ConfigError: there are checkpoints, and every one of them is damaged.
    """
    problems: list[str] = []
    for path in list_checkpoints(folder) or list_checkpoints(folder / FOLDER):
        try:
            if not verify(path):
                read_checkpoint(path)
                _log.warning("%s has no checksum, so it cannot be verified", path)
        except ConfigError as error:
            problems += error.problems
            continue
        for problem in problems:
            _log.error("%s: using %s instead", problem, path.name)
        return path
    if problems:
        raise ConfigError([*problems, f"checkpoint: none in {folder} can be read; move the folder away to start anew"])
    return None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint a user means by a file, a run folder, or a folder of run folders (then the newest run's).

    Raises:
        ConfigError: there is none.
    """
    path = _existing(path)
    if not path.is_dir():
        return path
    found = newest_sound_checkpoint(path)
    if found is None:
        runs = [folder.parent for folder in path.rglob(FOLDER) if list_checkpoints(folder)]
        runs.sort(key=lambda run: list_checkpoints(run / FOLDER)[0].stat().st_mtime)
        found = newest_sound_checkpoint(runs[-1]) if runs else None
        if found is not None:
            _report_newest(path, found)
    if found is None:
        raise ConfigError(f"checkpoint: {path} holds no step_*.ckpt; train first, or give another run folder")
    return found


@functools.cache  # once for all that a command loads
def _report_newest(folder: Path, checkpoint: Path) -> None:
    print(f"checkpoint: the newest run of {folder}: {checkpoint}", file=sys.stderr)


def _existing(path: str | Path) -> Path:
    try:
        path = Path(str(path)).expanduser()  # of a folder 2024 Hydra makes a number
        path.stat()
    except (OSError, ValueError) as error:  # a ValueError: a NUL byte
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        what = "a run folder (outputs/train/NAME/TIME), a .ckpt file, a model folder or a GGUF file"
        raise ConfigError(f"checkpoint: {path} {why}; give {what}") from error
    return path


def read_own_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint of this project, verified, in a format this version reads.

    Raises:
        ConfigError: it is damaged, foreign or of another format.
    """
    checkpoint = read_checkpoint(path, device)
    stored = checkpoint.get("hyper_parameters")
    found = stored.get("format") if isinstance(stored, dict) else None
    if found is None:
        raise ConfigError(f"checkpoint: {path} is not a recyclegpt checkpoint; give one that `recyclegpt train` wrote")
    if found != FORMAT:
        raise ConfigError(f"checkpoint: {path} has format {found}, this version reads {FORMAT}")
    return checkpoint


def load_trained(path: str | Path, device: torch.device | str = "cpu", module: str | Path | None = None) -> LoadedModel:
    """Read model and tokenizer of a run folder or checkpoint file. Only tensors and plain values are unpickled.

    Also reads a folder that `export` wrote, and a pretrained backbone in Hugging Face layout or GGUF; these have no
    config. The recyclable module is the checkpoint's, or that of the folder `module` (`with_module`).

    Raises:
        ConfigError: there is no checkpoint, or it is damaged, foreign, or of another format; or the module is another
            backbone's.
    """
    trained = _load(path, device)
    return trained if module is None else trained._replace(model=with_module(trained.model, module))


def _load(path: str | Path, device: torch.device | str) -> LoadedModel:
    found = _existing(path)
    if is_gguf(found) or (found / CONFIG).is_file():
        model, tokenizer = _read_model(found, device)
        return LoadedModel(model, tokenizer, {}, found if found.is_file() else found / CONFIG, 0, found)
    found = find_checkpoint(path)
    checkpoint = read_own_checkpoint(found, device)
    stored, state_dict = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    module_only = "backbone" in stored
    backbone = None
    try:
        model = _fitting_model(stored, state_dict, module_only)
        if not module_only:
            model.materialise(device)
    except ConfigError as error:
        raise ConfigError([f"checkpoint: {found}: {problem}" for problem in error.problems]) from error
    except (TypeError, RuntimeError) as error:
        raise ConfigError(f"checkpoint: {found} names a shape that cannot be built ({error})") from error
    if module_only:
        model, backbone = load_backbone_of(stored, model.recycle_config, found, device)
    model.load_state_dict(_weights(state_dict), strict=not module_only)
    tokenizer = _tokenizer_of(checkpoint, found)
    return LoadedModel(model.eval(), tokenizer, stored["config"], found, checkpoint["global_step"], backbone)


def _read_model(folder: Path, device: torch.device | str) -> tuple[RecycleGPT, TextTokenizer]:
    """Model and tokenizer of a folder with `CONFIG`, or a GGUF file; pretrained backbones have no recyclable module."""
    try:
        own = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"] == MODEL_TYPE
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # reported below
        own = False
    try:
        model = read_own(folder).to(device) if own else PretrainedBackbone(str(folder)).load(device=device)
        tokenizer = TextTokenizer.from_file(folder)
    except ConfigError as error:
        raise ConfigError([f"checkpoint: {problem.removeprefix('path: ')}" for problem in error.problems]) from error
    if tokenizer.vocab_size > model.config.vocab_size:
        small = f"{tokenizer.vocab_size:,} tokens, and its model embeds {model.config.vocab_size:,}"
        raise ConfigError(f"checkpoint: the tokenizer of {folder} has {small}; use its own tokenizer")
    return model.eval(), tokenizer


def _fitting_model(stored: Mapping[str, Any], state_dict: Mapping[str, Any], module_only: bool) -> RecycleGPT:
    """A model on the meta device, of the shape that a checkpoint names and that its weights fit."""
    model, recycle = ModelConfig(**stored["model"]), RecycleConfig(**stored["recycle"])
    num_layers = recycle.num_layers + (0 if module_only else model.num_layers)
    if num_layers > len(state_dict):  # creating layers takes time even where they take no memory
        raise ConfigError(f"num_layers: {num_layers:,} in all, but the file holds {len(state_dict)} weights")
    with torch.device("meta"):
        empty = RecycleGPT(model, recycle)
    if problems := weight_problems(state_dict, empty, module_only):
        raise ConfigError(problems)
    return empty


def _tokenizer_of(checkpoint: Mapping[str, Any], path: Path) -> TextTokenizer:
    """The tokenizer next to a checkpoint, which has to be the one that it was trained with."""
    file = path.parent / TOKENIZER
    if not file.exists():
        raise ConfigError(f"checkpoint: {file} is missing; copy it from the run the checkpoint comes from")
    tokenizer, data = TextTokenizer.from_file(file), state_in(checkpoint)
    if data is None:  # weights without a position in the data
        return tokenizer
    if tokenizer.fingerprint != data["settings"]["tokenizer"]:
        raise ConfigError(f"checkpoint: {file} is not the tokenizer that {path} was trained with; copy that one")
    return tokenizer


def weight_problems(state_dict: Mapping[str, Any], model: RecycleGPT, module_only: bool = False) -> list[str]:
    """How the weights of a checkpoint differ from a model's: missing, unknown, another shape, not finite.

    `module_only`: the checkpoint should hold the recyclable module's weights and no others.
    """
    given = _weights(state_dict)
    with torch.device("meta"):
        empty = RecycleGPT(model.config, model.recycle_config)
    part = empty if not module_only or empty.recyclable is None else nn.ModuleDict({"recyclable": empty.recyclable})
    try:
        part.load_state_dict(given, assign=True)
    except RuntimeError as error:
        return [line.strip()[:300] for line in str(error).splitlines()[1 : 1 + _MAX_NAMED]]
    # A sum needs no copy of the weight; it may overflow where the weight does not.
    weights = ((name, weight) for name, weight in given.items() if weight.is_floating_point())
    return [
        f"{name} is not finite" for name, weight in weights if not (weight.sum().isfinite() or weight.isfinite().all())
    ]


def _weights(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("model."): value for key, value in state_dict.items() if key.startswith("model.")}
