"""The header of a GGUF file: its metadata, and where each tensor lies (github.com/ggml-org/ggml, docs/gguf.md)."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recyclegpt.errors import ConfigError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_UINT32, _FLOAT32, _STRING, _ARRAY, _UINT64 = 4, 6, 8, 9, 10


class StoredTensor(NamedTuple):
    """Where a tensor lies, and how it is stored."""

    shape: tuple[int, ...]
    """Rows first, as in torch."""
    kind: int
    """Number of its ggml type."""
    offset: int
    """In bytes, from the beginning of the file."""


class GGUFHeader(NamedTuple):
    """What a GGUF file says of itself."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF files do."""
    try:
        if not path.is_file():  # reading a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GGUFHeader:
    """Read it; of the tensors nothing is read.

    Raises:
        ConfigError: the file is damaged, or of a version that is not known.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data))
    except (OSError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as GGUF ({error}); download or copy it again") from error


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, len(MAGIC)

    def numbers(self, kind: int, count: int) -> list[Any]:
        found = np.frombuffer(self.data, _NUMBERS[kind], count, self.at) if count else np.empty(0)
        self.at += found.nbytes
        # The shortest decimals: 1e-05 as in a config.json, not 9.999999747378752e-06.
        return [float(str(one)) for one in found] if kind == _FLOAT32 else found.tolist()

    def number(self, kind: int) -> Any:
        return self.numbers(kind, 1)[0]

    def text(self) -> str:
        begin = self.at + 8
        self.at = begin + int.from_bytes(self.data[self.at : begin], "little")
        if self.at > len(self.data):
            raise ValueError("it ends within its header")
        return self.data[begin : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(kind)
        inner, count = self.number(_UINT32), self.number(_UINT64)
        return self.numbers(inner, count) if inner in _NUMBERS else [self.value(inner) for _ in range(count)]


def _parse(cursor: _Cursor) -> GGUFHeader:
    version = cursor.number(_UINT32)
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}; {' and '.join(map(str, _VERSIONS))} are known")
    num_tensors, num_values = cursor.numbers(_UINT64, 2)
    metadata = {cursor.text(): cursor.value(cursor.number(_UINT32)) for _ in range(num_values)}
    tensors = {}
    for _ in range(num_tensors):
        name, num_sizes = cursor.text(), cursor.number(_UINT32)
        sizes = cursor.numbers(_UINT64, num_sizes)
        tensors[name] = StoredTensor(tuple(sizes[::-1]), cursor.number(_UINT32), cursor.number(_UINT64))
    alignment = metadata.get("general.alignment", 32)
    begin = -(-cursor.at // alignment) * alignment
    return GGUFHeader(
        metadata, {name: tensor._replace(offset=begin + tensor.offset) for name, tensor in tensors.items()}
    )
