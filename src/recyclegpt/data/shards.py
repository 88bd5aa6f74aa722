"""Token shards on disk: numpy files that are memory-mapped, a `meta.json` that describes them, and their tokenizer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recyclegpt.data.source import SPLITS, Skipped, Split
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError
from recyclegpt.files import sha256_of

FORMAT = 1
TOKENS_PER_SHARD = 1 << 27
_REMEDY = "write it with `recyclegpt tokenize`"


class TokenShards:
    """The tokens of one split, read as one long array.

    Files are opened at the first read, in every worker again, so the object can be pickled.

    Args:
        files: `.npy` files of one dimension, each with its length.
        vocab_size: V, ids are below it.
    """

    def __init__(self, files: list[tuple[Path, int]], vocab_size: int) -> None:
        self._files = [file for file, _ in files]
        self._starts = np.cumsum([0, *(num_tokens for _, num_tokens in files)], dtype=np.int64)
        self._vocab_size = vocab_size
        self._maps: dict[int, NDArray[Any]] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards together."""
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens start up to stop, across shard borders.

        Raises:
            ConfigError: an id is not in the vocabulary; an embedding on a GPU would fail without naming it.
        """
        tokens = np.empty(stop - start, np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            upto = min(stop, int(self._starts[shard + 1]))
            offset = int(self._starts[shard])
            piece = self._map(shard)[at - offset : upto - offset]
            if (largest := int(piece.max(initial=0))) >= self._vocab_size:
                held = f"the token id {largest:,}, and its tokenizer has {self._vocab_size:,}"
                raise ConfigError(f"{self._files[shard]}: holds {held}; {_REMEDY} again")
            tokens[at - start : upto - start] = piece
            at, shard = upto, shard + 1
        return tokens

    def _map(self, shard: int) -> NDArray[Any]:
        if shard not in self._maps:
            self._maps[shard] = np.load(self._files[shard], mmap_mode="r", allow_pickle=False)
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


class Tokenized:
    """A folder of token shards as a corpus. It brings its own tokenizer.

    Args:
        path: the folder; `~` is expanded.
        verify: compare every shard with its checksum when it is opened. A shard that fails is left out and counted.

    Raises:
        ConfigError: the folder does not hold token shards.
    """

    kind = "tokenized"

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        self.folder = Path(path).expanduser()
        self.verify = verify
        read_meta(self.folder)

    def open(self, max_skipped: int) -> tuple[TextTokenizer, TokenShards, TokenShards, str]:
        """Tokenizer, training tokens, validation tokens and a fingerprint of the tokens that are used.

        Raises:
            ConfigError: more than `max_skipped` shards are missing or damaged, or the tokenizer has changed.
        """
        meta = read_meta(self.folder)
        tokenizer = TextTokenizer.from_file(self.folder, meta["eos_token"])
        if tokenizer.fingerprint != meta["tokenizer"]:
            raise ConfigError(f"data.path: {self.folder / 'tokenizer.json'} did not write its shards; {_REMEDY} again")
        skipped = Skipped(max_skipped, str(self.folder))
        train, train_digest = self._open_split("train", meta, skipped)
        val, val_digest = self._open_split("val", meta, skipped)
        skipped.report()
        return tokenizer, train, val, f"{train_digest[:32]}{val_digest[:32]}"

    def _open_split(self, split: Split, meta: dict[str, Any], skipped: Skipped) -> tuple[TokenShards, str]:
        """The readable shards of a split, and a fingerprint of their content."""
        good, digest = [], hashlib.sha256()
        for shard in meta["splits"][split]["shards"]:
            file = self.folder / shard["file"]
            if problem := _fault(file, shard, self.verify):
                skipped.add(f"{file}: {problem}")
            else:
                good.append((file, shard["num_tokens"]))
                digest.update(shard["sha256"].encode())
        if not good:
            missing = f"data.path: {self.folder} has no readable shard of the {split} split"
            raise ConfigError([missing, *skipped.problems])
        return TokenShards(good, meta["vocab_size"]), digest.hexdigest()


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of `meta.json`.

    Raises:
        ConfigError: the folder holds no token shards, or shards of another format.
    """
    file = folder / "meta.json"
    if not file.is_file():
        raise ConfigError(f"data.path: {folder} holds no meta.json; {_REMEDY}")
    try:
        meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = meta["format"]
        shards = [shard for split in SPLITS for shard in meta["splits"][split]["shards"]]
        _ = meta["tokenizer"], meta["eos_token"], meta["vocab_size"]
        _ = [(folder / shard["file"], shard["num_tokens"], shard["sha256"]) for shard in shards]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"data.path: {file} cannot be read ({error!r}); {_REMEDY} again") from error
    if found != FORMAT:
        raise ConfigError(f"data.path: {file} has format {found}, this version reads {FORMAT}; {_REMEDY} again")
    return meta


def _fault(file: Path, shard: dict[str, Any], verify: bool) -> str | None:
    try:
        tokens = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return f"cannot be opened ({error})"
    if tokens.shape != (shard["num_tokens"],):
        return f"holds {tokens.shape} tokens, meta.json says {shard['num_tokens']}"
    if verify and sha256_of(file) != shard["sha256"]:
        return "its checksum differs from meta.json's: it was altered or damaged"
    return None


class TokenPiece(NamedTuple):
    """Consecutive tokens of a split."""

    tokens: NDArray[Any]
    num_documents: int  # that end in it
    num_bytes: int  # of UTF-8 text that the tokens stand for
    documents: NDArray[np.int64] | None = None  # kept beside the shards: a row each, its tokens and those of its prompt


def write_shards(
    pieces: Callable[[Split], Iterable[TokenPiece]],
    tokenizer: TextTokenizer,
    folder: Path,
    facts: Mapping[str, Any],
    tokens_per_shard: int = TOKENS_PER_SHARD,
    skipped: Skipped | None = None,
) -> dict[str, Any]:
    """Write the tokens of both splits into `folder`, which is complete or not there, and return its meta.

    `pieces` gives the tokens of a split, end tokens included; `facts` are more entries for the meta, which also records
    what was left out while `pieces` was read (`skipped`). A file ends with the piece that reaches `tokens_per_shard`.

    Raises:
        ConfigError: a split holds no document.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        dtype = token_dtype(tokenizer.vocab_size)
        skipped = skipped or Skipped(0)
        splits = {}
        for split in SPLITS:
            splits[split] = _write_split(split, pieces(split), partial, dtype, tokens_per_shard)
            if not splits[split]["num_documents"]:
                remedy = "give more text, or for validation data.val_paths or a larger data.val_fraction"
                raise skipped.error(f"data: the {split} split holds no document; {remedy}")
        meta = {
            "format": FORMAT,
            "tokenizer": tokenizer.fingerprint,
            "eos_id": tokenizer.eos_id,
            "eos_token": tokenizer.eos_token,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.name,
            "splits": splits,
            "skipped": skipped.problems,
            "empty": skipped.num_empty,
            **facts,
        }
        tokenizer.save(partial / "tokenizer.json")
        (partial / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()  # an empty one the user made
        partial.rename(folder)
        return meta
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds token ids below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _write_split(
    split: Split, pieces: Iterable[TokenPiece], folder: Path, dtype: np.dtype[Any], tokens_per_shard: int
) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    totals = {"num_tokens": 0, "num_documents": 0, "num_bytes": 0}
    buffered: list[NDArray[Any]] = []
    documents = []
    num_buffered = 0

    def flush() -> None:
        file = folder / f"{split}-{len(shards):05d}.npy"
        np.save(file, np.concatenate(buffered), allow_pickle=False)
        shards.append({"file": file.name, "num_tokens": num_buffered, "sha256": sha256_of(file)})
        buffered.clear()

    for piece in pieces:
        buffered.append(piece.tokens.astype(dtype, copy=False))
        num_buffered += len(piece.tokens)
        totals["num_tokens"] += len(piece.tokens)
        totals["num_documents"] += piece.num_documents
        totals["num_bytes"] += piece.num_bytes
        if piece.documents is not None:
            documents.append(piece.documents)
        if num_buffered >= tokens_per_shard:
            flush()
            num_buffered = 0
    if num_buffered:
        flush()
    if documents:
        np.save(folder / f"{split}-documents.npy", np.concatenate(documents), allow_pickle=False)
    return {"shards": shards, **totals}
