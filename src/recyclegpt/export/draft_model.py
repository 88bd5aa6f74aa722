"""The recyclable module as a draft model, which serving engines load next to a target for speculative decoding.

Read from the source of vLLM 0.33.0 (`models/mistral_eagle.py`, `models/llama_eagle.py`,
`transformers_utils/configs/eagle.py`); a test recomputes both loaders' arithmetic from the written files, and
`experiments/007_vllm` runs the first of them.
Embedding and LM head are left out: these loaders take the target's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recyclegpt.errors import ConfigError
from recyclegpt.models.huggingface.llama_layout import layer_shape
from recyclegpt.models.recyclegpt import RecycleGPT

KINDS = ("vllm", "eagle")
"""`vllm`: ordinary layers and a final norm (`EagleMistralForCausalLM`); `eagle`: EAGLE-1, which has neither the first
layer's input norm nor the final one (`EagleLlamaForCausalLM`)."""


def draft_config(model: RecycleGPT, kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of the draft.

    Raises:
        ConfigError: the loader would compute something else; every difference is named.
    """
    if problems := draft_problems(model, kind):
        raise ConfigError(problems)
    shape = layer_shape(model.config, model.recycle_config.num_layers, dtype)
    own: dict[str, Any] = {
        "architectures": ["EagleMistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": None,
    }
    if kind == "eagle":
        own = {"architectures": ["EagleLlamaForCausalLM"], "model_type": "llama"}
        own |= {"attention_bias": False, "mlp_bias": False}
    no_tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return own | shape | {"tie_word_embeddings": False} | no_tokens


def draft_weights(model: RecycleGPT, kind: str) -> dict[str, Tensor]:
    """The module's weights by the loader's names; `EagleLlamaForCausalLM` puts `model.` before each itself.

    Without its draft vocabulary: these engines draft with the target's whole LM head.
    """
    assert model.recyclable is not None
    prefix = "model." if kind == "vllm" else ""
    return {f"{prefix}{name}": weight for name, weight in model.recyclable.named_parameters()}


def draft_problems(model: RecycleGPT, kind: str) -> list[str]:
    """Why a loader would not compute what this module computes, each with a remedy; empty where it does."""
    recycle, config = model.recycle_config, model.config
    if model.recyclable is None:
        return [
            f"format: {kind} exports the recyclable module and this model has none (recycle.num_layers=0); "
            "use format=llama, or train a module with `recyclegpt adapt` or `recyclegpt train`"
        ]
    if recycle.kind != "recyclable":
        return [f"format: {kind} does not know a {recycle.kind} module (recycle.kind); use format=recyclegpt"]
    norms = (recycle.first_input_norm, recycle.final_norm)
    fitting = {(True, True): "vllm", (False, False): "eagle"}.get(norms)
    problems = []
    if recycle.norm_inputs:
        problems.append(
            f"format: {kind} does not support norms on the module's inputs (recycle.norm_inputs=true); train with "
            "recycle.norm_inputs=false, or use format=recyclegpt"
        )
    if fitting != kind:
        wanted = "true" if kind == "vllm" else "false"
        remedy = f"use format={fitting}" if fitting else f"train with both {wanted}, or use format=recyclegpt"
        problems.append(
            f"format: {kind} computes with recycle.first_input_norm={wanted} and recycle.final_norm={wanted}, this "
            f"module has {str(norms[0]).lower()} and {str(norms[1]).lower()}; {remedy}"
        )
    if kind == "eagle" and config.hidden_size % config.num_heads:
        problems.append(
            f"format: eagle is a Llama, whose width ({config.hidden_size}) its heads ({config.num_heads}) have to "
            "divide; use format=recyclegpt"
        )
    return problems
