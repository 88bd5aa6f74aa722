"""Device and dtype of a command."""

from __future__ import annotations

from typing import Any

import torch

from recyclegpt.errors import ConfigError
from recyclegpt.models import named_dtype


def choose_device(
    device: str, dtype: str, problems: list[str], key: str, decoding: bool = False
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a command; what cannot be had is added to `problems`. `decoding` allows int8 weights."""
    chosen = torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        problems.append(f"device: {device!r} is unknown; use cpu, cuda or cuda:N")
    if chosen.type not in ("cpu", "cuda"):
        problems.append(f"device: {device} is not supported; use cpu, cuda or cuda:N")
        chosen = torch.device("cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        problems.append(
            f"device: {device}, but torch sees {torch.cuda.device_count() or 'no'} CUDA devices here; use cpu"
        )
        chosen = torch.device("cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # streams, graphs and kernels go where the tensors are
    try:
        return chosen, named_dtype(dtype, chosen, decoding)
    except ConfigError as error:
        problems += [f"{key.removesuffix('dtype')}{problem}" for problem in error.problems]
    return chosen, torch.float32


def computing_dtype(name: str, chosen: torch.dtype, config: dict[str, Any]) -> torch.dtype:
    """The dtype to compute in: `chosen`, but `auto` means fp32 for a model whose config says it was trained in that."""
    trainer = config.get("trainer")
    precision = trainer.get("precision") if isinstance(trainer, dict) else None
    return torch.float32 if name == "auto" and precision in ("32-true", "64-true") else chosen
