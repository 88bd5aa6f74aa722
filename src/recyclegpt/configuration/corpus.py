"""The corpus a command reads: that of a checkpoint, or of `data=GROUP`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recyclegpt.checkpoints.load import TOKENIZER, LoadedModel
from recyclegpt.checkpoints.model_folder import CONFIG
from recyclegpt.configuration.hash import to_plain
from recyclegpt.configuration.instantiate import build
from recyclegpt.data import TextDataModule
from recyclegpt.errors import ConfigError


def corpus_for(cfg: DictConfig, trained: LoadedModel) -> TextDataModule:
    """The corpus a command reads with a checkpoint: that of `data=GROUP`, else the one it was trained on.

    Raises:
        ConfigError: it cannot be read, or its tokens are not the model's.
    """
    if "data" in cfg:
        settings = to_plain(cfg)["data"]
        # The model knows only its own tokens, whatever tokenizer the group would build.
        own = {"kind": "file", "path": str(trained.path.parent / TOKENIZER), "end_token": trained.tokenizer.eos_token}
        if settings.get("tokenizer") is not None:
            settings["tokenizer"] = {"_target_": "recyclegpt.data.TokenizerConfig", **own}
    else:
        settings = trained.config.get("data")
    datamodule = corpus_of(settings, None if "data" in cfg else trained.path)
    datamodule.connect(_row_length(trained), 2 + _num_unrolled(trained))
    datamodule.prepare()
    if datamodule.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        if "data" not in cfg:
            raise ConfigError(
                f"data: the text that {trained.path} was trained on has changed since, and its tokenizer with it; "
                "evaluate and generate read any text with the model's own: data=GROUP data.KEY=VALUE; bench takes "
                "prompts=FILE.jsonl"
            )
        raise ConfigError(
            f"data: its tokenizer differs from the one the model was trained with ({trained.path.parent / TOKENIZER}); "
            "tokenize the corpus with that one: data.tokenizer.kind=file data.tokenizer.path=..."
        )
    return datamodule


def corpus_of(settings: Any, checkpoint: Path | None = None) -> TextDataModule:
    """The corpus that a config, or the config inside of a checkpoint, describes.

    A tokenizer that a run read from a file is read from where the run has put it, next to the checkpoint.

    Raises:
        ConfigError: it describes something else, or nothing that can be read; naming the checkpoint, if it is its.
    """
    if settings is None and checkpoint is not None and checkpoint.name == CONFIG:
        raise ConfigError(
            f"checkpoint: {checkpoint.parent} holds a model and no run, so no corpus; name one: evaluate and generate "
            "take data=GROUP data.KEY=VALUE, bench takes prompts=FILE.jsonl, or model=hf for the speed alone"
        )
    tokenizer = settings.get("tokenizer") if isinstance(settings, dict) else None
    if checkpoint is not None and isinstance(tokenizer, dict) and tokenizer.get("kind") == "file":
        settings = settings | {"tokenizer": tokenizer | {"path": str(checkpoint.parent / TOKENIZER)}}
    try:
        built = build(settings, "data")
    except ConfigError as error:
        if checkpoint is None:
            raise
        raise ConfigError(
            [f"checkpoint: the config of {checkpoint}: {problem}" for problem in error.problems]
        ) from error
    if not isinstance(built, TextDataModule):
        where = "data" if checkpoint is None else f"checkpoint: the config of {checkpoint}: data"
        raise ConfigError(f"{where}: {type(built).__name__} is no corpus; choose one with data=GROUP data.KEY=VALUE")
    return built


def _row_length(trained: LoadedModel) -> int:
    """Length of the rows it was trained on: a pretrained backbone's context may be much longer."""
    return _number(trained, "model", "context_length") or trained.model.config.context_length


def _num_unrolled(trained: LoadedModel) -> int:
    return _number(trained, "loss", "num_unrolled") or 1


def _number(trained: LoadedModel, group: str, name: str) -> int | None:
    """A positive number in the config of the run that trained it; None of a model that no run of ours trained."""
    settings = trained.config.get(group)
    value = settings.get(name) if isinstance(settings, dict) else None
    return value if type(value) is int and value > 0 else None
