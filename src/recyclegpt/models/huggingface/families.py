"""Reads the `config.json` of a Llama-family checkpoint, as `transformers` 4 or 5 writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import ModelConfig
from recyclegpt.models.huggingface.rope_parameters import is_number, read_rope

CONFIG = "config.json"


@dataclass(frozen=True)
class Family:
    """What an architecture adds to plain LLaMA layers, and its defaults for keys that are left out."""

    model_type: str
    qkv_bias: bool | str = False
    """Whether there are such biases, or the key of `config.json` that says so."""
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    window: str | None = None
    """Key that has to be true for `sliding_window` to count; "" where it always counts."""
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        defaults={"max_position_embeddings": 2048},
    ),
    "MistralForCausalLM": Family(
        "mistral",
        window="",
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2",
        qkv_bias=True,
        window="use_sliding_window",
        defaults={"num_key_value_heads": 32, "sliding_window": 4096},
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        window="use_sliding_window",
        defaults={"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
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
_WHOLE = (*_NEEDED, "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "sliding_window")


def read_config(folder: Path) -> ModelConfig:
    """The shape in a checkpoint's `config.json`.

    A sliding window shortens the context to the window, and dynamic rotary scaling to the length below which nothing
    is scaled: within these lengths both compute what is computed here.

    Raises:
        ConfigError: it is missing, or not supported; naming every problem.
    """
    return model_config(_read(folder / CONFIG), str(folder / CONFIG))


def model_config(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The shape in these values of a `config.json`; `where` is its path, for messages.

    Raises:
        ConfigError: see `read_config`.
    """
    name, family = _family(values, where)
    if "quantization_config" in values:
        raise ConfigError(f"{where}: the weights are quantised; use the checkpoint they were made from")
    found = {**_DEFAULTS, **family.defaults, **{key: value for key, value in values.items() if value is not None}}
    found |= {key: None for key in _MAY_BE_NULL if key in values and values[key] is None}
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = found.get("num_attention_heads")
    problems = [f"{where}: {key} is missing" for key in _NEEDED if key not in found]
    for keys, kind, is_valid in (
        (_WHOLE, "a positive whole number", _is_whole),
        (_FLAGS, "true or false", lambda value: isinstance(value, bool)),
        (("rms_norm_eps", "initializer_range"), "a positive number", lambda value: is_number(value) and value > 0),
    ):
        problems += [
            f"{where}: {key} is {found[key]!r}, not {kind}"
            for key in keys
            if found.get(key) is not None and not is_valid(found[key])
        ]
    if found["hidden_act"] not in ("silu", "swish"):
        problems.append(f"{where}: hidden_act {found['hidden_act']!r} is not supported; only silu (SwiGLU) is")
    if problems:
        raise ConfigError(problems)
    rope = read_rope(values, found["max_position_embeddings"], where)
    counts = family.window is not None and (family.window == "" or found[family.window])
    window = found["sliding_window"] if counts else None
    flags = {
        key: found[source] if isinstance(source, str) else source
        for key, source in (("qkv_bias", family.qkv_bias), ("o_bias", family.o_bias), ("mlp_bias", family.mlp_bias))
    }
    try:
        return ModelConfig(
            vocab_size=found["vocab_size"],
            context_length=min(found["max_position_embeddings"], window or found["max_position_embeddings"]),
            num_layers=found["num_hidden_layers"],
            hidden_size=found["hidden_size"],
            num_heads=found["num_attention_heads"],
            num_kv_heads=found["num_key_value_heads"],
            head_dim=found["head_dim"],
            intermediate_size=found["intermediate_size"],
            rope_theta=rope.theta,
            norm_eps=float(found["rms_norm_eps"]),
            tie_embeddings=found["tie_word_embeddings"],
            init_std=float(found["initializer_range"]),
            qk_norm=family.qk_norm,
            rope_scaling=rope.scaling,
            **flags,
        )
    except ConfigError as error:
        raise ConfigError([f"{where} ({name}): {problem}" for problem in error.problems]) from error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: missing; give the folder of a Hugging Face checkpoint, or its name") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, not an object; copy it again")
    return values


def _family(values: Mapping[str, Any], where: str) -> tuple[str, Family]:
    named = values.get("architectures") or []
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    for name in names:
        if name in FAMILIES:
            return name, FAMILIES[name]
    if not names:  # some tools leave it out
        for name, family in FAMILIES.items():
            if values.get("model_type") == family.model_type:
                return name, family
    found = ", ".join(names) or values.get("model_type") or "none"
    raise ConfigError(f"{where}: architecture {found} is not supported; supported are {', '.join(FAMILIES)}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
