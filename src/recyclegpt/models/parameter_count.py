"""Sizes of a model, and whether a shape fits into this machine's memory."""

from __future__ import annotations

from typing import Any

from recyclegpt.hardware.memory import physical_memory
from recyclegpt.models.config import ModelConfig, RecycleConfig
from recyclegpt.models.recyclegpt import RecycleGPT

_BYTES = 4


def num_weights(model: ModelConfig, recycle: RecycleConfig) -> int:
    """Weights of a model of this shape by arithmetic, without building it. Biases and query/key norms are left out."""
    width = model.hidden_size
    attention = width * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
    layer = attention + 3 * width * model.intermediate_size + 2 * width
    embeddings = model.vocab_size * width * (1 if model.tie_embeddings else 2)
    fold = 2 * width * width + width if recycle.num_layers else 0
    return embeddings + (model.num_layers + recycle.num_layers) * layer + width + fold


def memory_problems(model: ModelConfig, recycle: RecycleConfig) -> list[str]:
    """Why a shape cannot be built here: its weights in fp32, or its tables of positions, exceed the memory."""
    memory = physical_memory()
    if memory is None:
        return []
    weights, tables = num_weights(model, recycle), 2 * model.context_length * model.head_dim
    problems = []
    if weights * _BYTES > memory:
        problems.append(
            f"model: {weights:,} weights take {weights * _BYTES / 1e9:,.0f} GB and this machine has "
            f"{memory / 1e9:,.0f} GB; lower model.num_layers, model.hidden_size or the vocabulary"
        )
    if tables * _BYTES > memory:
        problems.append(
            f"model.context_length: tables of {model.context_length} positions take {tables * _BYTES / 1e9:,.0f} GB "
            f"and this machine has {memory / 1e9:,.0f} GB; lower it"
        )
    return problems


def model_facts(model: RecycleGPT) -> dict[str, Any]:
    """Parameter counts; `recycle_overhead` is the module's parameters over all others."""
    total, module = model.num_parameters(), model.num_parameters_recycle()
    return {
        "num_parameters": total,
        "num_parameters_backbone": total - module,
        "num_parameters_recycle": module,
        "recycle_overhead": module / (total - module),
    }
