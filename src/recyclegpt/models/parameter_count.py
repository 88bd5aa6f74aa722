"""Sizes of a model, and whether a shape fits into this machine's memory."""

from __future__ import annotations

from typing import Any

import torch

from recyclegpt.hardware.measure import memory_of
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.recyclegpt import RecycleGPT


def memory_problems(model: ModelConfig, recycle: RecycleConfig) -> list[str]:
    """Why a shape cannot be built here: its weights in fp32, or its tables of positions, exceed the memory.

    By arithmetic, without building it; biases and query/key norms are left out.
    """
    memory, width = memory_of(torch.device("cpu")), model.hidden_size
    attention = width * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
    layers = (model.num_layers + recycle.num_layers) * (attention + 3 * width * model.intermediate_size + 2 * width)
    weights = model.vocab_size * width * (1 if model.tie_embeddings else 2) + layers
    tables = 2 * model.context_length * model.head_dim
    return [
        f"model: {what} take {4 * numbers / 1e9:,.0f} GB and this machine has {memory / 1e9:,.0f} GB; lower {keys}"
        for what, numbers, keys in (
            (f"{weights:,} weights", weights, "model.num_layers, model.hidden_size or the vocabulary"),
            (f"tables of {model.context_length} positions", tables, "model.context_length"),
        )
        if memory is not None and 4 * numbers > memory
    ]


def model_facts(model: RecycleGPT) -> dict[str, Any]:
    """Parameter counts; `recycle_overhead` is the module's parameters over all others."""
    total, module = model.num_parameters(), model.num_parameters_recycle()
    return {
        "num_parameters": total,
        "num_parameters_backbone": total - module,
        "num_parameters_recycle": module,
        "recycle_overhead": module / (total - module),
    }
