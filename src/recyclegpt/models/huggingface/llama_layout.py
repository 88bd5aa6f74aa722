"""The backbone in Hugging Face layout: `config.json` and tensor names of Llama, Mistral, Qwen2 and Qwen3.

`transformers` and serving engines load the result without this package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import ModelConfig
from recyclegpt.models.huggingface.rope_parameters import write_rope
from recyclegpt.models.recyclegpt import RecycleGPT


def backbone_config(
    config: ModelConfig, dtype: torch.dtype, end_token: int | list[int] | None = None, start_token: int | None = None
) -> dict[str, Any]:
    """`config.json` of the backbone alone; `dtype` is that of the stored weights, the tokens end and begin a text.

    Raises:
        ConfigError: no family has this combination of biases and norms.
    """
    architecture, model_type, extra = _family(config)
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **layer_shape(config, config.num_layers, dtype),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        # Explicitly null, because Llama's defaults are other tokens in this vocabulary.
        "bos_token_id": start_token,
        "eos_token_id": end_token,
        "pad_token_id": None,
        **extra,
    }


def backbone_weights(model: RecycleGPT) -> dict[str, Tensor]:
    """The backbone's weights by their names in all families; a tied LM head is left out, as in `transformers`."""
    weights = {f"model.{name}": weight for name, weight in model.backbone.state_dict().items()}
    if not model.config.tie_embeddings:
        weights["lm_head.weight"] = model.lm_head.weight.detach()
    return weights


def layer_shape(config: ModelConfig, num_layers: int, dtype: torch.dtype) -> dict[str, Any]:
    """The keys that all families share, in the spellings of both transformers 4 and 5."""
    name = str(dtype).removeprefix("torch.")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config.rope_theta, config.rope_scaling),
        "dtype": name,
        "torch_dtype": name,
    }


def _family(config: ModelConfig) -> tuple[str, str, dict[str, Any]]:
    """Architecture, model type, and the keys that only this family has."""
    heads_fit = config.hidden_size % config.num_heads == 0
    alike = config.qkv_bias == config.o_bias
    if config.qk_norm and alike and not config.mlp_bias:
        return "Qwen3ForCausalLM", "qwen3", {"attention_bias": config.qkv_bias, "use_sliding_window": False}
    if not config.qk_norm and alike and heads_fit:
        return "LlamaForCausalLM", "llama", {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    if not (config.qk_norm or config.qkv_bias or config.o_bias or config.mlp_bias):
        # transformers 5 refuses a Llama whose width its heads do not divide; Mistral's layers compute the same.
        return "MistralForCausalLM", "mistral", {"sliding_window": None}
    if config.qkv_bias and not (config.qk_norm or config.o_bias or config.mlp_bias):
        return "Qwen2ForCausalLM", "qwen2", {"use_sliding_window": False}
    flags = ("qk_norm", "qkv_bias", "o_bias", "mlp_bias")
    found = ", ".join(f"model.{flag}={str(getattr(config, flag)).lower()}" for flag in flags)
    width = "" if heads_fit else f", width {config.hidden_size} that {config.num_heads} heads do not divide"
    raise ConfigError(
        f"format: no Hugging Face family has {found}{width} together, neither Llama, Mistral, Qwen2 nor Qwen3; use "
        "format=recyclegpt"
    )
