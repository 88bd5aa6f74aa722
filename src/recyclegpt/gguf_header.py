"""The header of a GGUF file (github.com/ggml-org/ggml, docs/gguf.md), as the package `gguf` reads it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recyclegpt.errors import ConfigError

MAGIC = b"GGUF"


class GGUFHeader(NamedTuple):
    """What a GGUF file says of itself."""

    metadata: dict[str, Any]
    tensors: dict[str, Any]
    """`gguf.ReaderTensor` by name, whose data are mapped from the file."""


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
        ConfigError: the package `gguf` is missing, or the file is damaged or of a version that it does not know.
    """
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)  # tokenizer and model ask in turn, and a large vocabulary takes seconds
def _read(path: Path, _changed: int) -> GGUFHeader:
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError as error:
        raise ConfigError(f"{path}: needs the package gguf; pip install 'recyclegpt[gguf]'") from error
    try:
        reader = GGUFReader(path)
        # The shortest decimals: 1e-05 as in a config.json, not 9.999999747378752e-06.
        metadata = {
            name: float(str(field.parts[-1][0])) if field.types == [GGUFValueType.FLOAT32] else field.contents()
            for name, field in reader.fields.items()
        }
    except (OSError, ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as GGUF ({error}); download or copy it again") from error
    return GGUFHeader(metadata, {tensor.name: tensor for tensor in reader.tensors})


def dequantised(tensor: Any, first: int, last: int) -> NDArray[np.float32]:
    """Rows `first` up to `last` of a tensor seen as a matrix, in fp32."""
    from gguf import dequantize

    rows = tensor.data.reshape(-1, tensor.data.shape[-1])[first:last]
    return np.array(dequantize(rows, tensor.tensor_type))
