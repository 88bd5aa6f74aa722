"""From a source to what training reads. Finite corpora become token shards once, cached under their content."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from filelock import FileLock
from tqdm.auto import tqdm

from recyclegpt.data.chat import document_ids, documents
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.packed_rows import TokenArray, Tokens
from recyclegpt.data.shards import (
    TOKENS_PER_SHARD,
    Tokenized,
    TokenPiece,
    TokenShards,
    read_meta,
    token_dtype,
    write_shards,
)
from recyclegpt.data.source import Record, Skipped, Source, Split
from recyclegpt.data.text_files import TextFiles
from recyclegpt.data.tokenizer import END_TOKEN, TextTokenizer, TokenizerConfig
from recyclegpt.errors import ConfigError

MAX_TRAINING_CHARS = 20_000_000
"""Text a BPE is trained on; more changes a small vocabulary little."""
_SAMPLE_TOKENS = 1_000_000
_PIECE_CHARS = 1 << 20
"""Longer documents are cut at line ends: one is encoded by one core, and takes fifty times its text's memory."""
_BATCH_CHARS = 1 << 22
"""Text tokenized at once: enough that many cores seldom wait for the longest piece."""
_log = logging.getLogger(__name__)


@dataclass
class Corpus:
    """A corpus ready to be read."""

    tokenizer: TextTokenizer
    fingerprint: str
    """Of the text and its division into splits; the tokenizer has its own."""
    train: TokenShards | HFStream
    val: Tokens

    def sample(self, num_tokens: int = _SAMPLE_TOKENS) -> Tokens:
        """Training tokens to count: all of them, or the first of a stream."""
        if isinstance(self.train, TokenShards):
            return self.train
        return _read_stream(self.train, "train", self.tokenizer, Skipped(_SAMPLE_TOKENS), num_tokens)


def open_corpus(
    source: Source | HFStream | Tokenized, tokenizer: TokenizerConfig | None, cache_dir: Path, max_skipped: int
) -> Corpus:
    """Build or find tokenizer and tokens of `source`.

    Raises:
        ConfigError: naming what cannot be read.
    """
    if isinstance(source, Tokenized):
        built, train, val, digest = source.open(max_skipped)
        return Corpus(built, digest, train, val)
    assert tokenizer is not None  # TextDataModule refuses text without one
    fingerprint = source.fingerprint()
    built = build_tokenizer(source, tokenizer, cache_dir, max_skipped, fingerprint)
    if isinstance(source, HFStream):
        skipped = Skipped(max_skipped, source.name)
        tokens = _read_stream(source, "val", built, skipped)
        skipped.report()
        return Corpus(built, fingerprint, source, tokens)
    folder = build_shards(source, fingerprint, built, cache_dir, max_skipped)
    _, train, val, _ = Tokenized(folder, verify=False).open(0)  # the checksums have just been compared or written
    return Corpus(built, fingerprint, train, val)


def tokenize_corpus(
    source: Source,
    tokenizer: TokenizerConfig,
    folder: str | Path,
    max_skipped: int = 100,
    tokens_per_shard: int = TOKENS_PER_SHARD,
) -> dict[str, Any]:
    """Write a corpus as token shards for `data=tokenized` and return their meta.

    Raises:
        ConfigError: `folder` exists already, the source or tokenizer cannot be read, or too many documents are bad.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"folder: {folder} exists already; choose another one or remove it")
    built = build_tokenizer(source, tokenizer, None, max_skipped)
    return _write(source, source.fingerprint(), built, folder, max_skipped, tokens_per_shard)


def build_tokenizer(
    source: Source, config: TokenizerConfig, cache_dir: Path | None, max_skipped: int, fingerprint: str | None = None
) -> TextTokenizer:
    """The tokenizer for a corpus; a trained one is kept in `cache_dir` under the content it was trained on.

    Raises:
        ConfigError: its file is missing or broken, or there is nothing to train on.
    """
    end_token = config.end_token or END_TOKEN
    if config.kind == "file":
        return TextTokenizer.from_file(config.path or "", config.end_token)
    if config.kind == "byte":
        return TextTokenizer.bytes(end_token)
    if cache_dir is None:
        return TextTokenizer.train(_training_texts(source, max_skipped), config.vocab_size, end_token)
    minor = tokenizers.__version__.rsplit(".", 1)[0]
    text = fingerprint or source.fingerprint()
    key = _key("bpe 1", minor, text, str(config.vocab_size), end_token, str(MAX_TRAINING_CHARS))
    file = cache_dir / "tokenizers" / f"{source.kind}-{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            _log.info("training a BPE of %d tokens on %s", config.vocab_size, source.kind)
            build_tokenizer(source, config, None, max_skipped).save(file)
        return TextTokenizer.from_file(file, end_token)


def build_shards(source: Source, fingerprint: str, tokenizer: TextTokenizer, cache_dir: Path, max_skipped: int) -> Path:
    """The cached token shards of a finite corpus; written if absent, and again if damaged."""
    chat = [] if tokenizer.chat is None else [tokenizer.chat.source]
    folder = cache_dir / "tokens" / f"{source.kind}-{_key('shards 3', fingerprint, tokenizer.fingerprint, *chat)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            try:
                Tokenized(folder).open(0)
            except ConfigError as error:
                _log.warning("the cached tokens are damaged and are written again: %s", error)
                shutil.rmtree(folder)
        if not folder.exists():
            _write(source, fingerprint, tokenizer, folder, max_skipped, TOKENS_PER_SHARD)
        else:  # name what was left out then, and hold it against today's limit
            meta, skipped = read_meta(folder), Skipped(max_skipped, source.kind)
            for problem in meta["skipped"]:
                skipped.add(problem)
            skipped.num_empty = meta["empty"]
            skipped.report()
    return folder


def _write(
    source: Source, fingerprint: str, tokenizer: TextTokenizer, folder: Path, max_skipped: int, tokens_per_shard: int
) -> dict[str, Any]:
    skipped = Skipped(max_skipped, source.kind)
    meta = write_shards(
        lambda split: token_pieces(split, source.records(split), tokenizer, skipped),
        tokenizer,
        folder,
        {"source": source.kind, "source_fingerprint": fingerprint},
        tokens_per_shard,
        skipped,
    )
    skipped.report()
    return meta


def token_pieces(
    split: Split, records: Iterable[Record], tokenizer: TextTokenizer, skipped: Skipped
) -> Iterator[TokenPiece]:
    """Tokens of documents, each between the tokens that begin and end one, encoded in batches on all cores.

    Records that cannot be read, and documents that spell a special token, are counted in `skipped`.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    num_bytes_V = tokenizer.token_num_bytes()
    begins, spells = True, False
    with tqdm(desc=f"tokenizing {split}", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for batch in _batches(documents(records, skipped, tokenizer)):
            encoded = iter(tokenizer.encode_batch([record.text for record in batch if record.ids is None]))
            for record in batch:
                if record.ids is None:
                    ends = [tokenizer.eos_id] if record.ends else []
                    ids = [*(tokenizer.start_ids if begins else []), *next(encoded), *ends]
                    num_bytes, begins = len(record.text.encode()), record.ends
                    spells = (spells or skipped.spells(record.text, tokenizer.special_pattern)) and not record.ends
                else:
                    ids = document_ids(record, tokenizer)
                    num_bytes = int(num_bytes_V[ids].sum())
                bar.update(num_bytes)
                yield TokenPiece(np.asarray(ids, dtype), int(record.ends), num_bytes)


def whole_texts(source: TextFiles, tokenizer: TextTokenizer, max_skipped: int) -> Iterator[list[int]]:
    """Tokens of each document of a text, undivided, without those that begin and end one.

    Raises:
        ConfigError: no document can be read, or more than `max_skipped` cannot.
    """
    skipped = Skipped(max_skipped, source.kind)
    text: list[int] = []
    found = False
    for piece in token_pieces("val", source.whole(), tokenizer, skipped):
        text += piece.tokens.tolist()
        if piece.num_documents:
            found = True
            start = tokenizer.start_ids
            yield text[len(start) : -1] if text[: len(start)] == start else text[:-1]
            text = []
    skipped.report()
    if not found:
        raise skipped.error("data.paths: no document can be read")


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Documents and pieces of them, about `_BATCH_CHARS` characters together."""
    batch: list[Record] = []
    num_chars = 0
    for record in records:
        parts = list(_cut(record.text))
        for number, part in enumerate(parts, start=1):
            batch.append(record._replace(text=part, ends=record.ends and number == len(parts)))
            num_chars += len(part) + len(record.ids or ())
            if num_chars >= _BATCH_CHARS:
                yield batch
                batch, num_chars = [], 0
    if batch:
        yield batch


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARS:
        newline = text.rfind("\n", start, start + _PIECE_CHARS)
        stop = newline + 1 if newline >= start else start + _PIECE_CHARS
        yield text[start:stop]
        start = stop
    yield text[start:]


def _read_stream(
    source: HFStream, split: Split, tokenizer: TextTokenizer, skipped: Skipped, limit: int | None = None
) -> TokenArray:
    """The tokens of a split of a stream in memory, documents joined by the end token; at most `limit` of them."""
    pieces = [np.empty(0, np.int64)]
    length = num_found = 0
    for piece in token_pieces(split, source.records(split), tokenizer, skipped):
        pieces.append(piece.tokens.astype(np.int64))
        length += len(piece.tokens)
        num_found += piece.num_documents
        if limit is not None and length >= limit:
            break
    num_read = num_found + len(skipped.problems) + skipped.num_empty
    if split == "val" and num_read < source.num_val_documents:
        found = f"data.num_val_documents: {source.name} has {num_read} documents, fewer than {source.num_val_documents}"
        if source.val_split is None:
            raise skipped.error(f"{found}, so that none is left to train on; lower it")
        _log.warning("%s; all of them are used", found)
    if not length:
        raise skipped.error(f"data.name: {source.name} has no readable {split} document")
    return TokenArray(np.concatenate(pieces)[:limit])


def _training_texts(source: Source, max_skipped: int) -> Iterator[str]:
    num_chars = 0
    skipped = Skipped(max_skipped, source.kind)
    for record in documents(source.records("train"), skipped):
        yield record.text[: MAX_TRAINING_CHARS - num_chars]
        num_chars += len(record.text)
        if num_chars >= MAX_TRAINING_CHARS:
            return
    if num_chars == 0:
        raise skipped.error(f"data: {source.kind} has no readable training document")


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
