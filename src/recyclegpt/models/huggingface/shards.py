"""The safetensors files of a checkpoint, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recyclegpt.errors import ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SAMPLES = 64
_SAMPLE_BYTES = 4096


class Shards:
    """Tensors of a checkpoint folder by name.

    Raises:
        ConfigError: there are no safetensors, or files are missing or damaged; naming all of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}
        problems = []
        for file in _files(folder):
            try:
                with safe_open(folder / file, framework="pt") as opened:
                    self._names[file] = list(opened.keys())
                    for name in self._names[file]:
                        part = opened.get_slice(name)
                        self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
            except (SafetensorError, OSError) as error:
                problems.append(f"{folder / file}: cannot be read ({error}); copy the checkpoint again")
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
        return sampled_hash(self.folder / file for file in sorted(self._names))


def sampled_hash(files: Iterable[Path]) -> str:
    """See `Shards.fingerprint`."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as opened:
            for number in range(_SAMPLES):
                opened.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _files(folder: Path) -> list[str]:
    """The files that hold the tensors: those that the index names, or the only one."""
    path = folder / INDEX
    if not path.exists():
        if (folder / SINGLE).exists():
            return [SINGLE]
        raise ConfigError(f"{folder}: holds neither {SINGLE} nor {INDEX}; convert other weights to safetensors")
    try:
        files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [file for file in files if Path(file).name != file]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error!r}); copy it again") from error
    if outside:
        raise ConfigError(f"{path}: names {outside[0]!r}, which is not a file of this folder; do not use it")
    return files
