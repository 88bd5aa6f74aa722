"""From a checkpoint back to a model: the shapes are stored beside the weights, the tokenizer in the same folder."""

from __future__ import annotations

import logging
import stat
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recyclegpt.checkpoints.file import list_checkpoints, read_checkpoint, verify
from recyclegpt.checkpoints.model_folder import CONFIG, is_model_folder, read_model_folder
from recyclegpt.checkpoints.module_only import KEPT, load_backbone_of
from recyclegpt.data import TextDataModule, TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.files import matches_type
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT, RopeScaling
from recyclegpt.models.parameter_count import memory_problems

FORMAT = 1
FOLDER = "checkpoints"
TOKENIZER = "tokenizer.json"
_MOST_NAMED = 5
_LONGEST_SHOWN = 200
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
    """Folder of the pretrained backbone that it was adapted to, or is."""


def hyper_parameters(
    model: RecycleGPT, config: dict[str, Any], backbone: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What every checkpoint says of its model: plain Python, so that `torch.load(weights_only=True)` reads it.

    `backbone` tells where the pretrained backbone lies (`PretrainedBackbone.reference`) of a checkpoint that does not
    hold it.
    """
    return {
        "format": FORMAT,
        "model": asdict(model.config),
        "recycle": asdict(model.recycle_config),
        "config": config,
        **({} if backbone is None else {"backbone": backbone}),
    }


def newest_sound_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps in a run folder or its `checkpoints/` that is what was written.

    One that is damaged is told and passed over.

    Returns:
        None if the folder holds no checkpoint at all.

    Raises:
        ConfigError: there are checkpoints, and every one of them is damaged.
    """
    found = list_checkpoints(folder) or list_checkpoints(folder / FOLDER)
    problems: list[str] = []
    for path in found:
        try:
            if not verify(path):
                read_checkpoint(path)
                _log.warning("%s has no checksum beside it, so that nobody can tell whether it is intact", path)
        except ConfigError as error:
            problems += error.problems
            continue
        for problem in problems:
            _log.error("%s: going on from %s instead", problem, path.name)
        return path
    if problems:
        raise ConfigError([*problems, f"checkpoint: none in {folder} can be read; move the folder away to start anew"])
    return None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint a user means by a file, a run folder, or a folder of run folders (then the newest run's).

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"checkpoint: {path!r} is not a string; give a run folder or a .ckpt file")
    if "://" in str(path):
        raise ConfigError(f"checkpoint: {path} is not on this machine; download it first and name the file")
    if "\0" in str(path):
        raise ConfigError(f"checkpoint: {str(path)!r} holds a NUL byte, which no file's name may")
    path = Path(path).expanduser()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise ConfigError(
            f"checkpoint: {path} does not exist; give a run folder (outputs/train/NAME/TIME), a .ckpt file or "
            "the folder of a model"
        ) from error
    except OSError as error:  # a name too long, a link to itself, a folder that may not be entered
        shown = str(path) if len(str(path)) <= _LONGEST_SHOWN else f"{str(path)[:_LONGEST_SHOWN]}..."
        raise ConfigError(f"checkpoint: {shown} cannot be read ({error.strerror}); give another") from error
    if stat.S_ISREG(mode):
        return path
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"checkpoint: {path} is no regular file; give a run folder or a .ckpt file")
    found = newest_sound_checkpoint(path)
    if found is None:
        runs = [folder.parent for folder in path.rglob(FOLDER) if list_checkpoints(folder)]
        runs.sort(key=lambda run: list_checkpoints(run / FOLDER)[0].stat().st_mtime)
        found = newest_sound_checkpoint(runs[-1]) if runs else None
    if found is None:
        raise ConfigError(f"checkpoint: {path} holds no step_*.ckpt; train first, or give another run folder")
    return found


def read_own_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint file of this project, verified, in a format this version reads.

    Raises:
        ConfigError: it is damaged, foreign, incomplete or of another format.
    """
    checkpoint = read_checkpoint(path, device)
    stored = checkpoint.get("hyper_parameters")
    found = stored.get("format") if isinstance(stored, dict) else None
    if not isinstance(stored, dict) or found != FORMAT:
        raise ConfigError(
            f"checkpoint: {path} has format {found}, this version reads {FORMAT}; use the version that wrote it"
            if found is not None
            else f"checkpoint: {path} is not a recyclegpt checkpoint of format {FORMAT}; give one that "
            "`recyclegpt train` wrote"
        )
    parts = {"state_dict": checkpoint, "model": stored, "recycle": stored, "config": stored}
    missing = [name for name, place in parts.items() if not isinstance(place.get(name), dict)]
    if missing:
        raise ConfigError(f"checkpoint: {path} lacks {', '.join(missing)}; it is incomplete, use another")
    step = checkpoint.get("global_step", 0)
    if not isinstance(step, int) or step < 0:
        raise ConfigError(f"checkpoint: {path} has global_step {step!r}, which is no number of steps; use another")
    return checkpoint


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Read model and tokenizer of a run folder or checkpoint file. Only tensors and plain values are unpickled.

    A folder that `export` wrote, or a pretrained backbone's in Hugging Face layout, is read as well; it has no config.

    Raises:
        ConfigError: there is no checkpoint, or it is damaged, foreign, or of another format.
    """
    if _is_plain(path) and is_model_folder(folder := Path(path).expanduser()):
        return LoadedModel(*read_model_folder(folder, device), {}, folder / CONFIG, 0, folder)
    found = find_checkpoint(path)
    checkpoint = read_own_checkpoint(found, device)
    stored = checkpoint["hyper_parameters"]
    module_only = "backbone" in stored
    try:
        model = _empty_model(stored, checkpoint["state_dict"], module_only)
    except ConfigError as error:
        raise ConfigError([f"checkpoint: {found}: {problem}" for problem in error.problems]) from error
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ConfigError(f"checkpoint: {found} names a shape that cannot be built ({error})") from error
    if problems := weight_problems(checkpoint["state_dict"], model, module_only):
        raise ConfigError([f"checkpoint: {found} does not fit the shape it names: {problem}" for problem in problems])
    backbone = None
    if module_only:
        model, backbone = load_backbone_of(stored, model.recycle_config, found, device)
    else:
        model.materialise(device)
    model.load_state_dict(_weights(checkpoint["state_dict"]), strict=not module_only)
    tokenizer = _tokenizer_of(checkpoint, found)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"checkpoint: {found.parent / TOKENIZER} has {tokenizer.vocab_size:,} tokens and the model of {found} "
            f"embeds {model.config.vocab_size:,}; put the tokenizer of that run beside it"
        )
    return LoadedModel(
        model.eval(), tokenizer, stored["config"], found, int(checkpoint.get("global_step", 0)), backbone
    )


def _is_plain(path: str | Path) -> bool:
    return isinstance(path, str | Path) and "\0" not in str(path) and len(str(path)) < _LONGEST_SHOWN


def _empty_model(stored: Mapping[str, Any], state_dict: Mapping[str, Any], module_only: bool) -> RecycleGPT:
    """A model of the shape that a checkpoint names, without memory; nothing is made that its weights cannot fill."""
    known = {field.name for field in fields(ModelConfig)}
    shape = {key: value for key, value in stored["model"].items() if key in known}
    problems = [
        f"{group}.{field.name}: {values[field.name]!r} is not {getattr(field.type, '__name__', field.type)}"
        for group, kind, values in (("model", ModelConfig, shape), ("recycle", RecycleConfig, stored["recycle"]))
        for field in fields(kind)
        if field.name in values and not _is(values[field.name], field.type)
    ]
    if problems:
        raise ConfigError(problems)
    model, recycle = ModelConfig(**shape), RecycleConfig(**stored["recycle"])
    # Making layers takes time even where they take no memory.
    for group, config in (("model", model), ("recycle", recycle)):
        if config.num_layers > len(state_dict) and not (module_only and group == "model"):
            problems.append(f"{group}.num_layers: {config.num_layers}, and the file holds {len(state_dict)} weights")
    problems += [problem for problem in memory_problems(model, recycle) if "context_length" in problem]
    if problems:
        raise ConfigError(problems)
    with torch.device("meta"):
        return RecycleGPT(model, recycle)


def _is(value: Any, kind: Any) -> bool:
    if kind is RopeScaling:  # looks at its own numbers
        return isinstance(value, dict)
    return matches_type(value, kind)


def _tokenizer_of(checkpoint: Mapping[str, Any], path: Path) -> TextTokenizer:
    """The tokenizer beside a checkpoint, which has to be the one that it was trained with."""
    file = path.parent / TOKENIZER
    if not file.exists():
        raise ConfigError(f"checkpoint: {file} is missing; copy it from the run the checkpoint comes from")
    data = checkpoint.get(TextDataModule.__name__)
    settings = data.get("settings") if isinstance(data, dict) else None
    expected = settings.get("tokenizer") if isinstance(settings, dict) else None
    if not isinstance(expected, str):  # weights that were written without their place in the data
        return TextTokenizer.from_file(file)
    tokenizer = TextTokenizer.from_file_with(file, expected)
    if tokenizer is None:
        raise ConfigError(
            f"checkpoint: {file} is not the one that {path} was trained with; copy it from the run the checkpoint "
            "comes from"
        )
    return tokenizer


def weight_problems(state_dict: Mapping[str, Any], model: RecycleGPT, module_only: bool = False) -> list[str]:
    """How the weights of a checkpoint differ from what a model holds: missing, unknown, another shape, no numbers.

    `module_only`: the checkpoint should hold the recyclable module's and no other.
    """
    given, wanted = _weights(state_dict), model.state_dict()
    if module_only:
        wanted = {name: weight for name, weight in wanted.items() if name.startswith(KEPT)}
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    problems = [
        f"{name} is {_shape(given[name])}, the model's {_shape(weight)}"
        for name, weight in wanted.items()
        if name in given
        and not (
            isinstance(given[name], Tensor)
            and given[name].shape == weight.shape
            and given[name].layout == weight.layout
            and given[name].is_floating_point() == weight.is_floating_point()
        )
    ]
    problems += [
        f"{name} is not finite, so the model would compute nothing"
        for name in wanted
        if isinstance(given.get(name), Tensor) and not _finite(given[name])
    ]
    if len(problems) > _MOST_NAMED:
        problems[_MOST_NAMED:] = [f"and {len(problems) - _MOST_NAMED} more weights"]
    if missing:
        problems.append(f"{len(missing)} weights are missing, {missing[0]} for one")
    if unknown:
        problems.append(f"{len(unknown)} weights are unknown, {unknown[0]} for one")
    return problems


def _weights(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("model."): value for key, value in state_dict.items() if key.startswith("model.")}


def _finite(weight: Tensor) -> bool:
    # A sum needs no copy of the weight; it may overflow where the weight does not.
    if weight.layout != torch.strided or not weight.is_floating_point():
        return True
    return bool(weight.sum().isfinite()) or bool(weight.isfinite().all())


def _shape(value: Any) -> str:
    if isinstance(value, Tensor) and value.layout != torch.strided:
        return f"{list(value.shape)} {value.dtype}, {value.layout}"
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
