"""The model a config describes: random weights of a shape, the backbone of a run, or a pretrained one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from omegaconf import DictConfig

from recyclegpt.checkpoints.load import take_backbone
from recyclegpt.configuration.train_checks import VOCABULARY_MULTIPLE
from recyclegpt.data import TextDataModule, TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.models.huggingface import PretrainedBackbone


class BuiltModel(NamedTuple):
    """A model to train, and what its checkpoints say about a backbone that they do not hold."""

    model: RecycleGPT
    backbone: dict[str, Any] | None
    tokenizer: TextTokenizer
    """The corpus's, which knows all tokens at which a pretrained model ends a text."""


def make_model(
    cfg: DictConfig, shape: ModelConfig | PretrainedBackbone, recycle: RecycleConfig, datamodule: TextDataModule
) -> BuiltModel:
    """The model of a run, frozen where the config says so. Draws from torch's global generator.

    Raises:
        ConfigError: weights and corpus do not belong together.
    """
    tokenizer = datamodule.tokenizer
    if isinstance(shape, PretrainedBackbone):
        tokenizer = _its_tokenizer(shape, tokenizer)
        try:
            model = shape.load(recycle).train()
        except ConfigError as error:
            raise ConfigError([f"model.{problem}" for problem in error.problems]) from error
    else:
        vocabulary = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        model = RecycleGPT(replace(shape, vocab_size=vocabulary), recycle)
    if cfg.backbone.checkpoint is not None:
        take_backbone(model, cfg.backbone.checkpoint, tokenizer.fingerprint)
    if cfg.backbone.frozen:
        model.backbone.requires_grad_(False)
        model.lm_head.requires_grad_(False)
        if isinstance(shape, PretrainedBackbone):
            return BuiltModel(model, shape.reference(), tokenizer)
    return BuiltModel(model, None, tokenizer)


def _its_tokenizer(backbone: PretrainedBackbone, tokenizer: TextTokenizer) -> TextTokenizer:
    own = TextTokenizer.from_file(backbone.folder, tokenizer.eos_token)
    if own.fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"data: its tokenizer is not that of {backbone.path}; tokenize the corpus with "
            f"data.tokenizer.kind=file data.tokenizer.path={backbone.folder}"
        )
    return own
