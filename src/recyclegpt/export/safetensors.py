"""Weights of an export on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json
from recyclegpt.models.huggingface.shards import INDEX

WRITTEN_BY = {"written_by": "recyclegpt export"}
"""In the header of every weight file. `config.json` would not do: `transformers` copies its keys when it saves weights
that were trained further."""


def write_weights(folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, max_shard_size: str | int) -> None:
    """Write safetensors in this dtype: one file, or shards and their index above `max_shard_size` (`5GB`).

    Weights are converted a shard at a time, so that a second copy of the model is never held; token ids stay integers.

    Raises:
        ConfigError: the size cannot be read.
        OSError: a file cannot be written.
    """
    # Sizes count in the dtype that is written; the meta device has them without the bytes.
    kept = {name: dtype if weight.is_floating_point() else weight.dtype for name, weight in weights.items()}
    sizes = {name: torch.empty(weight.shape, dtype=kept[name], device="meta") for name, weight in weights.items()}
    try:
        split = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size)
    except ValueError as error:
        raise ConfigError(f"max_shard_size: {max_shard_size!r} is not a size such as 5GB or 500MB") from error
    for file, names in split.filename_to_tensors.items():
        shard = {name: weights[name].detach().to("cpu", kept[name]).contiguous() for name in names}
        path = folder / file
        path.touch()
        mode = path.stat().st_mode & 0o777  # the usual one; `save_file` leaves a file that only its owner may read
        save_file(shard, path, metadata={"format": "pt", **WRITTEN_BY})
        path.chmod(mode)
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def is_written_by_export(path: Path) -> bool:
    """Whether `write_weights` wrote this file, by its header; an unreadable file was not."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError):
        return False
    return WRITTEN_BY.items() <= metadata.items()
