"""Reads the `config.json` of a Llama-family checkpoint, as `transformers` 4 or 5 writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import ModelConfig
from recyclegpt.models.huggingface.rope_parameters import read_rope

CONFIG = "config.json"


class Family(NamedTuple):
    """What an architecture adds to plain LLaMA layers, and its defaults for keys that are left out."""

    model_type: str
    defaults: Mapping[str, Any]
    qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family("llama", {"max_position_embeddings": 2048}),
    "MistralForCausalLM": Family(
        "mistral",
        {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
            "use_sliding_window": True,
        },
    ),
    "Qwen2ForCausalLM": Family("qwen2", {"num_key_value_heads": 32, "sliding_window": 4096}, qkv_bias=True),
    "Qwen3ForCausalLM": Family(
        "qwen3", {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096}, qk_norm=True
    ),
}
"""By the name in `architectures`. SmolLM and SmolLM2 are `LlamaForCausalLM`. Defaults are those of `transformers`."""
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
}
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def read_config(folder: Path) -> ModelConfig:
    """The shape in a checkpoint's `config.json`.

    A sliding window shortens the context to the window, and dynamic rotary scaling to the length below which nothing
    is scaled: within these lengths both compute what is computed here.

    Raises:
        ConfigError: it is missing, or not supported; naming every problem.
    """
    path = folder / CONFIG
    try:
        return model_config(json.loads(path.read_text(encoding="utf-8")))
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give the folder of a Hugging Face checkpoint") from error


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The shape in these values of a `config.json`.

    Raises:
        ConfigError: see `read_config`.
    """
    family = _family(values)
    found = {**_DEFAULTS, **family.defaults, **values}
    problems = [f"{key} is missing" for key in _NEEDED if key not in found]
    if "quantization_config" in values:
        problems.append("the weights are quantised; use the checkpoint they were made from")
    if found["hidden_act"] not in ("silu", "swish"):
        problems.append(f"hidden_act {found['hidden_act']!r} is not supported; only silu (SwiGLU) is")
    if problems:
        raise ConfigError(problems)
    longest = found["max_position_embeddings"]
    theta, scaling = read_rope(values, longest)
    window = found["sliding_window"] if found["use_sliding_window"] else None
    return ModelConfig(
        vocab_size=found["vocab_size"],
        context_length=min(longest, window or longest),
        num_layers=found["num_hidden_layers"],
        hidden_size=found["hidden_size"],
        num_heads=found["num_attention_heads"],
        num_kv_heads=found["num_key_value_heads"],
        head_dim=found["head_dim"],
        intermediate_size=found["intermediate_size"],
        rope_theta=theta,
        norm_eps=float(found["rms_norm_eps"]),
        tie_embeddings=found["tie_word_embeddings"],
        init_std=float(found["initializer_range"]),
        qkv_bias=family.qkv_bias or found["attention_bias"],
        o_bias=found["attention_bias"],
        mlp_bias=found["mlp_bias"],
        qk_norm=family.qk_norm,
        rope_scaling=scaling,
    )


def _family(values: Mapping[str, Any]) -> Family:
    names = values.get("architectures") or []
    for name, family in FAMILIES.items():
        if name in names or (not names and values.get("model_type") == family.model_type):  # some tools leave it out
            return family
    found = ", ".join(names) or values.get("model_type") or "none"
    raise ConfigError(f"architecture {found} is not supported; supported are {', '.join(FAMILIES)}")
