"""Whether the model group names a checkpoint, and what follows for the corpus."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from recyclegpt.configuration.instantiate import build
from recyclegpt.errors import ConfigError
from recyclegpt.models.huggingface import PretrainedBackbone

VOCABULARY_MULTIPLE = 64
"""A vocabulary of our own is padded to a multiple of this: matrix products of such sizes are faster."""


def is_pretrained(model: DictConfig) -> bool:
    """Whether the model group names a checkpoint (`model=hf`), and not a shape."""
    return str(model.get("_target_")).endswith(f".{PretrainedBackbone.__name__}")


def pretrained_backbone(cfg: DictConfig) -> PretrainedBackbone | None:
    """The checkpoint that `cfg.model` names; None where it is a shape. The corpus then takes its tokenizer.

    Raises:
        ConfigError: the checkpoint cannot be used, or another tokenizer is asked for.
    """
    if not is_pretrained(cfg.model):
        return None
    backbone: PretrainedBackbone = build(cfg.model, "model")
    tokenizer = OmegaConf.select(cfg, "data.tokenizer")
    if tokenizer is not None:
        if tokenizer.kind == "byte" or (tokenizer.kind == "file" and tokenizer.path is None):
            raise ConfigError(
                f"data.tokenizer.kind: {tokenizer.kind}, but the backbone of {backbone.path} only knows its own "
                "tokens; leave data.tokenizer as it is"
            )
        with open_dict(cfg):
            if tokenizer.kind != "file":
                tokenizer.kind, tokenizer.path = "file", str(backbone.folder)
    return backbone
