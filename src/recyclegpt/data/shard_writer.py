"""Writes documents as token shards: tokenized in batches, joined by the end token, renamed into place when complete.

Tokens that are there already, written by a model, take the same way without the first step (`write_token_shards`).
"""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from recyclegpt.data.shards import FORMAT, sha256_of
from recyclegpt.data.skipped import Skipped
from recyclegpt.data.sources import SPLITS, Record, Split
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError

TOKENS_PER_SHARD = 1 << 27
_PIECE_CHARS = 1 << 20
"""Longer documents are cut at line ends: one is encoded by one core, and takes fifty times its text's memory."""
_BATCH_CHARS = 1 << 22
"""Text tokenized at once: enough that many cores seldom wait for the longest piece."""


class TokenPiece(NamedTuple):
    """Some tokens of a split, in their order."""

    tokens: NDArray[Any]
    num_documents: int
    """End tokens among them that end a document."""
    num_bytes: int
    """Of UTF-8 text that they stand for."""


def write_shards(
    records: Callable[[Split], Iterable[Record]],
    tokenizer: TextTokenizer,
    folder: Path,
    *,
    skipped: Skipped | None = None,
    facts: dict[str, Any] | None = None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    progress: bool = True,
) -> dict[str, Any]:
    """Tokenize both splits into `folder` and return its meta, as `write_token_shards` does.

    Args:
        records: gives the readable documents of a split.
    """
    return write_token_shards(
        lambda split: _tokenized(split, records(split), tokenizer, progress),
        tokenizer,
        folder,
        skipped=skipped,
        facts=facts,
        tokens_per_shard=tokens_per_shard,
    )


def write_token_shards(
    pieces: Callable[[Split], Iterable[TokenPiece]],
    tokenizer: TextTokenizer,
    folder: Path,
    *,
    skipped: Skipped | None = None,
    facts: dict[str, Any] | None = None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
) -> dict[str, Any]:
    """Write the tokens of both splits into `folder` and return its meta.

    Everything is written beside `folder` and renamed at the end, so a folder is complete or not there; if another
    process was first, its folder stays.

    Args:
        pieces: gives the tokens of a split, end tokens included.
        tokenizer: whose ids they are; they are stored as uint16 where they fit, else uint32.
        skipped: what `pieces` counts while it is read; its number goes into the meta.
        facts: more entries for the meta.
        tokens_per_shard: a file ends with the piece that reaches it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        dtype = token_dtype(tokenizer.vocab_size)
        splits = {split: _write_split(split, pieces(split), partial, dtype, tokens_per_shard) for split in SPLITS}
        meta = {
            "format": FORMAT,
            "tokenizer": tokenizer.fingerprint,
            "eos_id": tokenizer.eos_id,
            "eos_token": tokenizer.eos_token,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.name,
            "splits": splits,
            "skipped": len(skipped) if skipped is not None else 0,
            "empty": skipped.num_empty if skipped is not None else 0,
            "left_out": skipped.names() if skipped is not None else {},
            **(facts or {}),
        }
        tokenizer.save(partial / "tokenizer.json")
        (partial / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # otherwise another process was first
                raise
        return meta
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that token ids below `vocab_size` are stored in."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _write_split(
    split: Split, pieces: Iterable[TokenPiece], folder: Path, dtype: np.dtype[Any], tokens_per_shard: int
) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    total = {"num_tokens": 0, "num_documents": 0, "num_bytes": 0}
    waiting: list[NDArray[Any]] = []
    num_waiting = 0

    def flush() -> None:
        nonlocal num_waiting
        tokens = np.concatenate(waiting)
        file = folder / f"{split}-{len(shards):05d}.npy"
        np.save(file, tokens, allow_pickle=False)
        shards.append({"file": file.name, "num_tokens": len(tokens), "sha256": sha256_of(file)})
        waiting.clear()
        num_waiting = 0

    for piece in pieces:
        waiting.append(piece.tokens.astype(dtype, copy=False))
        num_waiting += len(piece.tokens)
        total["num_tokens"] += len(piece.tokens)
        total["num_documents"] += piece.num_documents
        total["num_bytes"] += piece.num_bytes
        if num_waiting >= tokens_per_shard:
            flush()
    if num_waiting:
        flush()
    if not total["num_documents"]:
        raise ConfigError(
            f"data: the {split} split holds no document; give more text, or for validation data.val_paths or a larger "
            "data.val_fraction"
        )
    return {"shards": shards, **total}


def _tokenized(
    split: Split, records: Iterable[Record], tokenizer: TextTokenizer, progress: bool
) -> Iterator[TokenPiece]:
    dtype = token_dtype(tokenizer.vocab_size)
    bar = tqdm(
        desc=f"tokenizing {split}", unit="B", unit_scale=True, disable=not progress, file=sys.stderr, leave=False
    )
    begins = True
    with bar:
        for pieces, ends in _batches(records):
            for piece, end, ids in zip(pieces, ends, tokenizer.encode_batch(pieces), strict=True):
                ids = [*tokenizer.start_ids, *ids] if begins else ids
                begins = end
                if end:
                    ids.append(tokenizer.eos_id)
                num_bytes = len(piece.encode())
                bar.update(num_bytes)
                yield TokenPiece(np.asarray(ids, dtype), int(end), num_bytes)


def _batches(records: Iterable[Record]) -> Iterator[tuple[list[str], list[bool]]]:
    """Pieces of documents, about `_BATCH_CHARS` characters together, and whether each ends its document."""
    pieces: list[str] = []
    ends: list[bool] = []
    num_chars = 0
    for record in records:
        parts = list(_cut(record.text))
        for number, part in enumerate(parts, start=1):
            pieces.append(part)
            ends.append(record.ends and number == len(parts))
            num_chars += len(part)
            if num_chars >= _BATCH_CHARS:
                yield pieces, ends
                pieces, ends, num_chars = [], [], 0
    if pieces:
        yield pieces, ends


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARS:
        newline = text.rfind("\n", start, start + _PIECE_CHARS)
        stop = newline + 1 if newline >= start else start + _PIECE_CHARS
        yield text[start:stop]
        start = stop
    yield text[start:]
