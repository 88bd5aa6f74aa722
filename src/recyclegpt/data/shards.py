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
_CHUNK_TOKENS = 1 << 22
_log = logging.getLogger(__name__)


class TokenShards:
    """The tokens of one split, read as one long array.

    Files are opened at the first read and again in every worker, so the object can be pickled.

    Args:
        files: `.npy` files of one dimension.
        num_tokens: length of each.
        vocab_size: ids are below; None: not known, so that nothing is compared.
    """

    def __init__(self, files: list[Path], num_tokens: list[int], vocab_size: int | None = None) -> None:
        self._files = files
        self._vocab_size = vocab_size
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
            ConfigError: an id is not in the vocabulary. An embedding on a GPU would fail later, and without a name.
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
        if self._vocab_size is not None and len(tokens) and tokens.max() >= self._vocab_size:
            first = int(np.argmax(tokens >= self._vocab_size))
            place = int(np.searchsorted(self._starts, start + first, side="right")) - 1
            raise ConfigError(f"{self._files[place]}: {_beyond(int(tokens[first]), self._vocab_size)}")
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"data.path: {file} cannot be read ({error!r}); {remedy}") from error
    if found != FORMAT:
        raise ConfigError(f"data.path: {file} has format {found}, this version reads format {FORMAT}; {remedy} again")
    if problems := _meta_problems(meta):
        raise ConfigError([f"data.path: {file}: {problem}; {remedy} again" for problem in problems])
    return meta


def _meta_problems(meta: dict[str, Any]) -> list[str]:
    """What is missing from a description of shards, or is not what `recyclegpt tokenize` writes."""
    kinds: dict[str, type] = {"tokenizer": str, "eos_token": str, "vocab_size": int, "splits": dict}
    problems = [
        f"{name} is {meta[name]!r:.60}, not {kind.__name__}" if name in meta else f"{name} is missing"
        for name, kind in kinds.items()
        if not isinstance(meta.get(name), kind)
    ]
    splits = meta.get("splits")
    for split, facts in splits.items() if isinstance(splits, dict) else ():
        shards = facts.get("shards") if isinstance(facts, dict) else None
        if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
            problems.append(f"splits.{split} holds no list of shards")
            continue
        for number, shard in enumerate(shards):
            where = f"splits.{split}.shards[{number}]"
            name, num_tokens = shard.get("file"), shard.get("num_tokens")
            if not isinstance(name, str) or name != Path(name).name or not name.endswith(".npy"):
                problems.append(f"{where}.file is {name!r:.80}, not the name of a .npy file in this folder")
            elif any(name == other.get("file") for other in shards[:number]):
                problems.append(f"{where}.file: {name} is named twice")
            if not isinstance(num_tokens, int) or isinstance(num_tokens, bool) or num_tokens < 0:
                problems.append(f"{where}.num_tokens is {num_tokens!r:.60}, not a number of tokens")
            if not isinstance(shard.get("sha256"), str):
                problems.append(f"{where}.sha256 is {shard.get('sha256')!r:.60}, not a checksum")
    return problems


def open_shards(folder: Path, split: Split, skipped: Skipped, verify: bool = True) -> tuple[TokenShards, str]:
    """The readable shards of a split, and a fingerprint of their content.

    A missing, short or altered shard is counted in `skipped` and left out. `verify=False` trusts the checksums.

    Raises:
        ConfigError: if too many shards are bad or none is left.
    """
    files, lengths, digest = [], [], hashlib.sha256()
    meta = read_meta(folder)
    for shard in meta["splits"].get(split, {}).get("shards", []):
        file = folder / shard["file"]
        problem = _fault(file, shard, verify, meta["vocab_size"])
        if problem:
            skipped.add(f"{file}: {problem}")
            continue
        files.append(file)
        lengths.append(shard["num_tokens"])
        digest.update(shard["sha256"].encode())
    if not files:
        raise ConfigError([f"data.path: {folder} has no readable shard of the {split} split", *skipped.problems])
    return TokenShards(files, lengths, meta["vocab_size"]), digest.hexdigest()


def sha256_of(file: Path) -> str:
    """Checksum of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _fault(file: Path, shard: dict[str, Any], verify: bool, vocab_size: int) -> str | None:
    if file.exists() and not file.is_file():  # opening a pipe would wait for ever
        return "is no regular file"
    try:
        tokens = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return f"cannot be opened ({error})"
    if not isinstance(tokens, np.ndarray) or tokens.dtype.kind != "u":
        return f"holds {getattr(tokens, 'dtype', 'no array')}, not token ids (unsigned whole numbers)"
    if tokens.shape != (shard["num_tokens"],):
        return f"holds {tokens.shape} tokens, meta.json says {shard['num_tokens']}"
    if not verify:
        return None  # what is read is compared with the vocabulary then
    if sha256_of(file) != shard["sha256"]:
        return "its checksum differs from meta.json's: it was altered or damaged"
    largest = max(
        (int(tokens[at : at + _CHUNK_TOKENS].max()) for at in range(0, len(tokens), _CHUNK_TOKENS)), default=0
    )
    return _beyond(largest, vocab_size) if largest >= vocab_size else None


def _beyond(token: int, vocab_size: int) -> str:
    return (
        f"holds the token id {token:,}, and its tokenizer has {vocab_size:,}; "
        "put the tokenizer back that wrote it, or run `recyclegpt tokenize` again"
    )
