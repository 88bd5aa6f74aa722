"""The safetensors files of a checkpoint, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recyclegpt.errors import ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SAMPLES = 64
_SAMPLE_BYTES = 4096
MOST_NAMED = 5


class Shards:
    """Tensors of a checkpoint folder by name.

    Raises:
        ConfigError: there are no safetensors, or files are missing or damaged; naming all of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = _read_index(folder)
        files = sorted(set(index.values())) if index is not None else [SINGLE]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}
        problems = []
        for file in files:
            path = folder / file
            try:
                with safe_open(path, framework="pt") as opened:
                    names = list(opened.keys())
                    for name in names:
                        part = opened.get_slice(name)
                        self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
                    self._names[file] = names
            except FileNotFoundError:
                problems.append(f"{path}: missing; copy the checkpoint again")
            except (SafetensorError, OSError) as error:
                problems.append(f"{path}: cannot be read ({error}); copy the checkpoint again")
        if index is not None and not problems:
            absent = [name for name, file in index.items() if name not in self._names[file]]
            if absent:
                problems.append(f"{folder / INDEX}: names {some(absent)}, which its files do not hold; copy it again")
        if problems:
            raise ConfigError(problems)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in turn, memory-mapped: only what is copied takes memory."""
        for file, names in self._names.items():
            with safe_open(self.folder / file, framework="pt") as opened:
                for name in names:
                    yield name, opened.get_tensor(name)

    def fingerprint(self) -> str:
        """A hash of file names, sizes and 64 samples of each file, without reading all of it."""
        digest = hashlib.sha256()
        for file in sorted(self._names):
            path = self.folder / file
            size = path.stat().st_size
            digest.update(f"{file} {size}".encode())
            with path.open("rb") as opened:
                for number in range(_SAMPLES):
                    opened.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                    digest.update(opened.read(_SAMPLE_BYTES))
        return digest.hexdigest()


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype shared by all floating-point tensors of a checkpoint; None if there are several."""
    found = {name for name in Shards(folder).dtypes.values() if name in FLOATS}
    return FLOATS[found.pop()] if len(found) == 1 else None


def _read_index(folder: Path) -> Mapping[str, str] | None:
    """Tensor name to file name; None if a single file holds all tensors."""
    path = folder / INDEX
    if not path.exists():
        if (folder / SINGLE).exists():
            return None
        others = sorted(file.name for file in folder.glob("*.bin"))
        hint = f"; {others[0]} is a pickle, which may run code; convert it to safetensors" if others else ""
        raise ConfigError(f"{folder}: holds neither {SINGLE} nor {INDEX}{hint}")
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy it again") from error
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise ConfigError(f"{path}: weight_map does not map tensor names to files; copy it again")
    outside = sorted({file for file in found.values() if Path(file).name != file or file in ("", ".", "..")})
    if outside:
        raise ConfigError(f"{path}: names {outside[0]!r}, which is not a file of this folder; do not use it")
    return found


def some(names: list[str]) -> str:
    """The first few of these names, and the number of the rest."""
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"
