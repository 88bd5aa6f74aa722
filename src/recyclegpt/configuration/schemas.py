"""Types of the settings that no `_target_` owns: those of `generate`, `bench` and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from recyclegpt.configuration.type_check import describe, fits

DECODING: Mapping[str, Any] = {
    "strategy": str,
    "num_recycled": int,
    "confidence": float,
    "temperature": float,
    "top_k": int | None,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "max_new_tokens": int,
    "stop": str | list[str],
    "seed": int,
    "dtype": str,
    "compile": bool,
}
BENCH: Mapping[str, Any] = {
    "strategies": str | list[str],
    **dict.fromkeys(("num_recycled", "batch", "prompt_tokens", "new_tokens"), int | list[int]),
    "recycle_num_layers": int | list[int] | None,
    "dtype": str | list[str],
    "compile": bool | str | list[bool | str],
    "kernels": bool,
    "acceptance": float | list[float] | None,
    "baselines": str | list[str],
    **dict.fromkeys(("num_prompts", "repetitions", "vocab_size"), int),
    "stages": bool,
    "output": str | None,
}
STEP: Mapping[str, Any] = {
    **dict.fromkeys(("batch", "accumulate", "num_unrolled", "repetitions"), int),
    "row_length": int | None,
    "optimizer": str,
    "dtype": str,
    "compile": bool | str,
    "activation_checkpointing": bool | int,
    "profile": bool,
}
BULK: Mapping[str, Any] = {
    "out": str | None,
    **dict.fromkeys(("num_documents", "num_val_documents", "prompt_tokens", "new_tokens", "batch"), int),
}
TASKS: Mapping[str, Any] = {
    "tasks": str | list[str],
    "tasks_path": str | None,
    "scorings": str | list[str],
    "limit": int | float | None,
    "num_fewshot": int | None,
    **dict.fromkeys(("batch_size", "bootstrap_iters"), int),
}
MAY_BE_EMPTY = ("stop", "baselines", "tasks")


def type_problems(section: DictConfig, types: Mapping[str, Any], path: str = "") -> list[str]:
    """One sentence for every value of another type, and for every empty list that leaves nothing to do."""
    plain: Any = OmegaConf.to_container(section, resolve=True)
    problems = []
    for key, hint in types.items():
        value = plain[key]
        if not fits(value, hint):
            problems.append(f"{path}{key}: {value!r} is not {describe(hint)}")
        elif value == [] and key not in MAY_BE_EMPTY:
            problems.append(f"{path}{key}: the list is empty, so nothing would be measured; give at least one value")
    return problems


def many(value: Any) -> list[Any]:
    """The values of a setting that may be one or a list."""
    return list(value) if isinstance(value, (list, tuple, ListConfig)) else [value]
