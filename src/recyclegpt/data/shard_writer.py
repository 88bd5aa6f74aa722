"""Writes documents as token shards: tokenized in batches, joined by the end token, renamed into place when complete."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from recyclegpt.data.shards import FORMAT, sha256_of
from recyclegpt.data.skipped import Skipped
from recyclegpt.data.sources import SPLITS, Record, Split
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError

TOKENS_PER_SHARD = 1 << 27
_BATCH_CHARS = 1 << 20
"""Text tokenized at once. Longer documents are cut at line ends: an encoding takes fifty times its text's memory."""


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
    """Tokenize both splits into `folder` and return its meta.

    Everything is written beside `folder` and renamed at the end, so a folder is complete or not there; if another
    process was first, its folder stays.

    Args:
        records: gives the readable documents of a split.
        tokenizer: its ids are stored as uint16 where they fit, else uint32.
        skipped: what `records` counts while it is read; its number goes into the meta.
        facts: more entries for the meta.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        splits = {
            split: _write_split(split, records(split), tokenizer, partial, np.dtype(dtype), tokens_per_shard, progress)
            for split in SPLITS
        }
        meta = {
            "format": FORMAT,
            "tokenizer": tokenizer.fingerprint,
            "eos_id": tokenizer.eos_id,
            "eos_token": tokenizer.eos_token,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype,
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


def _write_split(
    split: Split,
    records: Iterable[Record],
    tokenizer: TextTokenizer,
    folder: Path,
    dtype: np.dtype[Any],
    tokens_per_shard: int,
    progress: bool,
) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    total = {"num_tokens": 0, "num_documents": 0, "num_bytes": 0}
    waiting: list[NDArray[Any]] = []
    num_waiting = 0
    begins = True

    def flush() -> None:
        nonlocal num_waiting
        tokens = np.concatenate(waiting)
        file = folder / f"{split}-{len(shards):05d}.npy"
        np.save(file, tokens, allow_pickle=False)
        shards.append({"file": file.name, "num_tokens": len(tokens), "sha256": sha256_of(file)})
        waiting.clear()
        num_waiting = 0

    bar = tqdm(
        desc=f"tokenizing {split}", unit="B", unit_scale=True, disable=not progress, file=sys.stderr, leave=False
    )
    with bar:
        for pieces, ends in _batches(records):
            for piece, end, ids in zip(pieces, ends, tokenizer.encode_batch(pieces), strict=True):
                ids = [*tokenizer.start_ids, *ids] if begins else ids
                begins = end
                if end:
                    ids.append(tokenizer.eos_id)
                waiting.append(np.asarray(ids, dtype))
                num_waiting += len(ids)
                num_bytes = len(piece.encode())
                total["num_tokens"] += len(ids)
                total["num_documents"] += end
                total["num_bytes"] += num_bytes
                bar.update(num_bytes)
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
    while len(text) - start > _BATCH_CHARS:
        newline = text.rfind("\n", start, start + _BATCH_CHARS)
        stop = newline + 1 if newline >= start else start + _BATCH_CHARS
        yield text[start:stop]
        start = stop
    yield text[start:]
