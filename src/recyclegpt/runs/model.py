"""The model a config describes: random weights of a shape, the backbone of a run, or a pretrained one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from recyclegpt.checkpoints.load import TOKENIZER, load_trained
from recyclegpt.configuration.train_checks import VOCABULARY_MULTIPLE
from recyclegpt.data import TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT
from recyclegpt.models.huggingface import PretrainedBackbone
from recyclegpt.models.huggingface.module_folder import with_module

_SHAPE_INDEPENDENT = ("init_std", "context_length")
"""Fields of the config that no weight depends on."""


class BuiltModel(NamedTuple):
    """A model to train, and what its checkpoints say about a backbone that they do not hold."""

    model: RecycleGPT
    backbone: dict[str, Any] | None
    tokenizer: TextTokenizer
    """The corpus's, which knows all tokens at which a pretrained model ends a text."""
    coverage: float = 1.0
    """Share of the training tokens that the draft vocabulary holds."""


def make_model(cfg: DictConfig, parts: Mapping[str, Any], tokenizer: TextTokenizer, counts_V: Tensor) -> BuiltModel:
    """The model of a run, frozen where the config says so. Draws from torch's global generator.

    Args:
        counts_V: how often each id occurs in the training text; the draft vocabulary holds the most frequent.

    Raises:
        ConfigError: weights and corpus do not belong together.
    """
    shape, recycle, ids = parts["model"], parts["recycle"], parts["draft_ids"]
    if recycle.draft_vocab is not None:
        if ids is None:
            ids = frequent_ids(counts_V.numpy(), tokenizer, recycle.draft_vocab)
        elif ids[-1] >= len(counts_V):
            raise ConfigError(f"recycle.draft_vocab: holds the id {ids[-1]:,}, of {len(counts_V):,} in the vocabulary")
    if isinstance(shape, PretrainedBackbone):
        tokenizer = _its_tokenizer(shape, tokenizer)
        try:
            model = shape.load(recycle).train()
        except ConfigError as error:
            named = [text if text.startswith("recycle.") else f"model.{text}" for text in error.problems]
            raise ConfigError(named) from error
    else:
        vocabulary = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        model = RecycleGPT(replace(shape, vocab_size=vocabulary), recycle)
    if cfg.backbone.checkpoint is not None:
        _take_backbone(model, cfg.backbone.checkpoint, tokenizer.fingerprint)
    reference, coverage = None, 1.0
    if cfg.backbone.frozen:
        model.backbone.requires_grad_(False)
        model.lm_head.requires_grad_(False)
        if isinstance(shape, PretrainedBackbone):
            reference = shape.reference()
    if model.draft_ids is not None:
        model.draft_ids.copy_(torch.from_numpy(ids))
    if cfg.module is not None:
        _take_module(model, cfg.module)
    if model.draft_ids is not None:
        coverage = float(counts_V[model.draft_ids].sum() / counts_V.sum())
    return BuiltModel(model, reference, tokenizer, coverage)


def _take_module(model: RecycleGPT, folder: str) -> None:
    """Begin with the module in a folder, its draft vocabulary included."""
    given = with_module(model, folder)
    own, other = asdict(model.recycle_config), asdict(given.recycle_config)
    if wanted := [f"recycle.{key}={value}" for key, value in other.items() if own[key] != value]:
        raise ConfigError(f"module: {folder} holds a module of another shape; set {' '.join(wanted)}")
    assert model.recyclable is not None
    assert given.recyclable is not None
    model.recyclable.load_state_dict(given.recyclable.state_dict())


def _its_tokenizer(backbone: PretrainedBackbone, tokenizer: TextTokenizer) -> TextTokenizer:
    own = TextTokenizer.from_file(backbone.folder, tokenizer.eos_token)
    if own.fingerprint != tokenizer.fingerprint:
        theirs = f"data.tokenizer.kind=file data.tokenizer.path={backbone.folder}"
        raise ConfigError(f"data: its tokenizer is not that of {backbone.path}; tokenize the corpus with {theirs}")
    return own


def frequent_ids(counts_V: NDArray[np.int64], tokenizer: TextTokenizer, size: int) -> NDArray[np.int64]:
    """The most frequent ids, ascending `(D,)`, D = `size`; of equally frequent ones the lower.

    Special tokens and single bytes are always among them, so that a draft can end a text and spell any word.

    Raises:
        ConfigError: there are fewer ids, or more special tokens and bytes.
    """
    always_V = tokenizer.token_num_bytes() == 1
    always_V[list(tokenizer.special_ids)] = True
    least = int(always_V.sum())
    if not least <= size <= len(counts_V):
        reason = f"{size} is not between {least:,}, special tokens and bytes, and the vocabulary's {len(counts_V):,}"
        raise ConfigError(f"recycle.draft_vocab: {reason}")
    order = np.lexsort((np.arange(len(counts_V)), -counts_V, ~always_V))
    return np.sort(order[:size])


def _take_backbone(model: RecycleGPT, checkpoint: str | Path, tokenizer_fingerprint: str) -> None:
    """Copy backbone and LM head of a checkpoint into `model`; the recyclable module stays as it is.

    Raises:
        ConfigError: the checkpoint cannot be read, has another shape, or another tokenizer.
    """
    trained = load_trained(checkpoint)
    own, other = asdict(model.config), asdict(trained.model.config)
    problems = [
        f"model.{key}: {own[key]}, but the backbone of {trained.path} has {other[key]}; set model.{key}={other[key]}"
        for key in own
        if key not in _SHAPE_INDEPENDENT and own[key] != other[key]
    ]
    if trained.tokenizer.fingerprint != tokenizer_fingerprint:
        theirs = f"data.tokenizer.kind=file data.tokenizer.path={trained.path.parent / TOKENIZER}"
        problems.append(f"backbone.checkpoint: {trained.path} has another tokenizer; set {theirs}")
    if problems:
        raise ConfigError(problems)
    model.backbone.load_state_dict(trained.model.backbone.state_dict())
    model.lm_head.load_state_dict(trained.model.lm_head.state_dict())
