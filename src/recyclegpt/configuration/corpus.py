"""The corpus a command reads: that of a checkpoint, or of `data=GROUP`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from recyclegpt.checkpoints.load import TOKENIZER, LoadedModel
from recyclegpt.configuration.compose import to_plain
from recyclegpt.configuration.instantiate import build
from recyclegpt.errors import ConfigError

if TYPE_CHECKING:
    from recyclegpt.data import TextDataModule


def corpus_for(cfg: DictConfig, trained: LoadedModel) -> TextDataModule:
    """The corpus that `data=GROUP` names, else the one that a checkpoint was trained on.

    Raises:
        ConfigError: it cannot be read, or its tokens are not the model's.
    """
    config = trained.config
    if "data" in cfg:
        datamodule = given_corpus(cfg, trained)
    else:
        datamodule = _corpus_of_checkpoint(config.get("data"), trained.path)
    datamodule.connect(row_length(trained), 2 + config.get("loss", {}).get("num_unrolled", 1))
    datamodule.prepare()
    if datamodule.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        if "data" in cfg:
            raise ConfigError(
                f"data: its tokenizer differs from the model's; tokenize the corpus with that one: "
                f"data.tokenizer.kind=file data.tokenizer.path={trained.tokenizer_file}"
            )
        raise ConfigError(
            f"data: the text that {trained.path} was trained on has changed since, and its tokenizer with it; "
            "name a corpus (evaluate, generate-corpus: data=GROUP data.KEY=VALUE) or prompts (bench: prompts=FILE)"
        )
    return datamodule


def given_corpus(cfg: DictConfig, trained: LoadedModel) -> TextDataModule:
    """The corpus that `data=GROUP` names, not yet read, with the model's tokenizer.

    Raises:
        ConfigError: its settings cannot work.
    """
    settings = to_plain(cfg)["data"]
    # The model knows only its own tokens, whatever tokenizer the group would build.
    if settings.get("tokenizer") is not None:
        own = {"kind": "file", "path": str(trained.tokenizer_file), "end_token": trained.tokenizer.eos_token}
        settings["tokenizer"] = {"_target_": "recyclegpt.data.TokenizerConfig", **own}
    return corpus_of(settings)


def row_length(trained: LoadedModel) -> int:
    """Positions that a model was trained on; a pretrained backbone's context may be much longer."""
    return int(trained.config.get("model", {}).get("context_length") or trained.model.config.context_length)


def corpus_of(settings: Any) -> TextDataModule:
    """The corpus that a config's section `data` describes.

    Raises:
        ConfigError: it describes something else.
    """
    from recyclegpt.data import TextDataModule  # late: it imports Lightning

    if not isinstance(built := build(settings, "data"), TextDataModule):
        raise ConfigError(f"data: {type(built).__name__} is no corpus; choose one with data=GROUP data.KEY=VALUE")
    return built


def _corpus_of_checkpoint(settings: Any, checkpoint: Path) -> TextDataModule:
    if settings is None:
        raise ConfigError(
            f"checkpoint: {checkpoint.parent} holds a model and no run, so no corpus; name one (evaluate, "
            "generate-corpus: data=GROUP data.KEY=VALUE) or a set of prompts (bench: prompts=FILE)"
        )
    # A tokenizer that the run read from a file is read from where the run has put it.
    if (settings.get("tokenizer") or {}).get("kind") == "file":
        settings = settings | {"tokenizer": settings["tokenizer"] | {"path": str(checkpoint.parent / TOKENIZER)}}
    try:
        return corpus_of(settings)
    except ConfigError as error:
        raise ConfigError(
            [f"checkpoint: the config of {checkpoint}: {problem}" for problem in error.problems]
        ) from None
