"""Folders that hold a model and no run: what `export` wrote, and pretrained backbones in Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from recyclegpt.data import TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT
from recyclegpt.models.huggingface import PretrainedBackbone
from recyclegpt.models.huggingface.own_layout import MODEL_TYPE, read_own

CONFIG = "config.json"


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a model's `config.json`; run folders hold none."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_model_folder(folder: Path, device: torch.device | str = "cpu") -> tuple[RecycleGPT, TextTokenizer]:
    """Model and tokenizer of such a folder; a pretrained backbone is a model without a recyclable module.

    Raises:
        ConfigError: it cannot be read, or is of an architecture that is not supported.
    """
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        own = isinstance(values, dict) and values.get("model_type") == MODEL_TYPE
    except (OSError, ValueError, RecursionError):  # reported below
        own = False
    try:
        model = read_own(folder).to(device) if own else PretrainedBackbone(str(folder)).load(device=device)
        tokenizer = TextTokenizer.from_file(folder)
    except ConfigError as error:
        raise ConfigError([f"checkpoint: {problem.removeprefix('path: ')}" for problem in error.problems]) from error
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"checkpoint: the tokenizer of {folder} has {tokenizer.vocab_size:,} tokens and its model embeds "
            f"{model.config.vocab_size:,}; use its own tokenizer"
        )
    return model.eval(), tokenizer
