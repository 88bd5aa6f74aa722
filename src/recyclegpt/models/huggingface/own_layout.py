"""The whole model as a folder with two doors: `RecycleGPT.from_pretrained` and `transformers`' Auto classes.

Both read the same `model.safetensors` and the same `config.json`. The two Python files are a way in and nothing more:
they import this package, which has to be installed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from recyclegpt.models.recyclegpt import RecycleGPT

MODEL_TYPE = "recyclegpt"
MODELING = '''"""Shows `transformers` the model of the package recyclegpt, which has to be installed."""

from recyclegpt.decoding import transformers_model


class RecycleGPTConfig(transformers_model.RecycleGPTConfig):
    """Defined here so that `save_pretrained` copies this file."""


class RecycleGPTForCausalLM(transformers_model.RecycleGPTForCausalLM):
    """Defined here so that `save_pretrained` copies this file."""

    config_class = RecycleGPTConfig
'''
GENERATE = '''"""Lets `model.generate` recycle: strategy, num_recycled and confidence are further arguments of it."""

from recyclegpt.decoding.transformers_model import generate

__all__ = ["generate"]
'''
CODE = {"modeling_recyclegpt.py": MODELING, "custom_generate/generate.py": GENERATE}
"""Files of code by their place in the folder."""


def own_config(
    model: RecycleGPT, dtype: torch.dtype, end_token: int | None = None, start_token: int | None = None
) -> dict[str, Any]:
    """`config.json`: `model` and `recycle` are what the model is built from, all else tells `transformers` how.

    Args:
        model: what is written.
        dtype: of the weights beside it.
        end_token: id that ends a text.
        start_token: id that begins one.
    """
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


def own_weights(model: RecycleGPT) -> dict[str, Tensor]:
    """All weights by their own names; a tied classifier is left out, since both doors tie it again."""
    weights = dict(model.state_dict())
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    return weights
