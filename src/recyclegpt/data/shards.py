"""Token shards on disk: numpy files that are memory-mapped, a `meta.json` that describes them, and their tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recyclegpt.data.skipped import Skipped
from recyclegpt.data.sources import Split
from recyclegpt.errors import ConfigError

FORMAT = 1
_CHUNK_BYTES = 1 << 22
_log = logging.getLogger(__name__)


class TokenShards:
    """The tokens of one split, read as one long array.

    Files are opened at the first read and again in every worker, so the object can be pickled.

    Args:
        files: `.npy` files of one dimension.
        num_tokens: length of each.
    """

    def __init__(self, files: list[Path], num_tokens: list[int]) -> None:
        self._files = files
        self._starts = np.concatenate([[0], np.cumsum(num_tokens)]).astype(np.int64)
        self._maps: list[NDArray[Any] | None] = [None] * len(files)

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards together."""
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens start up to stop, int64, across shard borders.

        Raises:
            IndexError: if the range leaves the split.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of a split of {self.num_tokens}")
        tokens = np.empty(stop - start, np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            upto = min(stop, int(self._starts[shard + 1]))
            offset = int(self._starts[shard])
            tokens[at - start : upto - start] = self._map(shard)[at - offset : upto - offset]
            at, shard = upto, shard + 1
        return tokens

    def _map(self, shard: int) -> NDArray[Any]:
        tokens = self._maps[shard]
        if tokens is None:
            tokens = self._maps[shard] = np.load(self._files[shard], mmap_mode="r", allow_pickle=False)
        return tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": [None] * len(self._files)}


def read_meta(folder: Path) -> dict[str, Any]:
    """The checked content of `meta.json`.

    Raises:
        ConfigError: if the folder is not one of token shards, or of another format.
    """
    file = folder / "meta.json"
    remedy = "write it with `recyclegpt tokenize`"
    if not file.is_file():
        raise ConfigError(f"data.path: {folder} holds no meta.json; {remedy}")
    try:
        meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = meta["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"data.path: {file} cannot be read ({error!r}); {remedy}") from error
    if found != FORMAT:
        raise ConfigError(f"data.path: {file} has format {found}, this version reads format {FORMAT}; {remedy} again")
    return meta


def open_shards(folder: Path, split: Split, skipped: Skipped, verify: bool = True) -> tuple[TokenShards, str]:
    """The readable shards of a split, and a fingerprint of their content.

    A missing, short or altered shard is counted in `skipped` and left out. `verify=False` trusts the checksums.

    Raises:
        ConfigError: if too many shards are bad or none is left.
    """
    files, lengths, digest = [], [], hashlib.sha256()
    for shard in read_meta(folder)["splits"].get(split, {}).get("shards", []):
        file = folder / shard["file"]
        problem = _fault(file, shard, verify)
        if problem:
            skipped.add(f"{file}: {problem}")
            continue
        files.append(file)
        lengths.append(shard["num_tokens"])
        digest.update(shard["sha256"].encode())
    if not files:
        raise ConfigError([f"data.path: {folder} has no readable shard of the {split} split", *skipped.problems])
    return TokenShards(files, lengths), digest.hexdigest()


def sha256_of(file: Path) -> str:
    """Checksum of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _fault(file: Path, shard: dict[str, Any], verify: bool) -> str | None:
    try:
        tokens = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        return f"cannot be opened ({error})"
    if tokens.shape != (shard["num_tokens"],):
        return f"holds {tokens.shape} tokens, meta.json says {shard['num_tokens']}"
    if verify and sha256_of(file) != shard["sha256"]:
        return "its checksum differs from meta.json's: it was altered or damaged"
    return None
