"""The whole model as a folder that both `RecycleGPT.from_pretrained` and `transformers`' Auto classes load.

Both read the same `model.safetensors` and `config.json`. The two Python files in it only import this package, which has
to be installed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recyclegpt.errors import ConfigError
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.huggingface.shards import Shards
from recyclegpt.models.recyclegpt import RecycleGPT

MODEL_TYPE = "recyclegpt"
MODELING = '''"""Shows `transformers` the model of the package recyclegpt, which has to be installed."""

from recyclegpt.export import transformers_model


class RecycleGPTConfig(transformers_model.RecycleGPTConfig):
    """Defined here so that `save_pretrained` copies this file."""


class RecycleGPTForCausalLM(transformers_model.RecycleGPTForCausalLM):
    """Defined here so that `save_pretrained` copies this file."""

    config_class = RecycleGPTConfig
'''
GENERATE = '''"""Lets `model.generate` recycle: strategy, num_recycled and confidence_threshold are extra arguments."""

from recyclegpt.export.transformers_model import generate

__all__ = ["generate"]
'''
CODE = {"modeling_recyclegpt.py": MODELING, "custom_generate/generate.py": GENERATE}
"""Python files by their path in the folder."""


def write_code(folder: Path) -> None:
    """Write the Python files into an exported folder."""
    for place, code in CODE.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(code, encoding="utf-8")


def own_config(
    model: RecycleGPT, dtype: torch.dtype, end_token: int | list[int] | None = None, start_token: int | None = None
) -> dict[str, Any]:
    """`config.json`: the model is built from `model` and `recycle`; the rest is for `transformers`."""
    name = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["RecycleGPTForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": "modeling_recyclegpt.RecycleGPTConfig",
            "AutoModelForCausalLM": "modeling_recyclegpt.RecycleGPTForCausalLM",
        },
        "model": asdict(model.config),
        "recycle": asdict(model.recycle_config),
        "tie_word_embeddings": model.config.tie_embeddings,
        "bos_token_id": start_token,
        "eos_token_id": end_token,
        "pad_token_id": None,
        "dtype": name,
        "torch_dtype": name,
    }


def read_own(folder: Path) -> RecycleGPT:
    """The model of such a folder, in the dtype of its weights.

    Raises:
        ConfigError: a file is missing or damaged, or the weights do not fit the config.
    """
    tensors = dict(Shards(folder).tensors())
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        with torch.device("meta"):
            model = RecycleGPT(ModelConfig(**values["model"]), RecycleConfig(**values["recycle"]))
        model.to(next(weight.dtype for weight in tensors.values() if weight.is_floating_point())).materialise()
        # A tied head is in no file.
        missing = own_weights(model).keys() & model.load_state_dict(tensors, strict=False).missing_keys
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: names no shape that fits the weights ({reason}); export the model again") from error
    if missing:
        raise ConfigError(f"{folder}: {', '.join(sorted(missing)[:5])} are missing; export the model again")
    return model


def own_weights(model: RecycleGPT) -> dict[str, Tensor]:
    """All weights by their own names; a tied LM head is left out, since both loaders tie it again."""
    weights = dict(model.state_dict())
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    return weights
