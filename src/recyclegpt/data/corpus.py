"""Finite corpora become token shards once: tokenizer and shards are cached under the content they were made from."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from filelock import FileLock

from recyclegpt.data.shard_writer import TOKENS_PER_SHARD, write_shards
from recyclegpt.data.shards import open_shards, read_meta
from recyclegpt.data.skipped import Skipped
from recyclegpt.data.sources import SPLITS, Source, documents
from recyclegpt.data.tokenized import Tokenized
from recyclegpt.data.tokenizer import END_TOKEN, TextTokenizer, TokenizerConfig, load_tokenizer
from recyclegpt.errors import ConfigError

MAX_TRAINING_CHARS = 20_000_000
"""Text a BPE is trained on; more changes a small vocabulary little."""
_log = logging.getLogger(__name__)


def tokenize_corpus(
    source: Source | Tokenized,
    tokenizer: TokenizerConfig | None,
    folder: str | Path,
    *,
    max_skipped: int = 100,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a corpus as token shards for `data=tokenized` and return their meta.

    Raises:
        ConfigError: if `folder` exists already, the source or tokenizer cannot be read, or too many documents are bad.
    """
    folder = Path(folder).expanduser()
    if tokenizer is None or isinstance(source, Tokenized):
        raise ConfigError("data: this corpus is tokenized already; choose python_stdlib, text_files or hf_stream")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"folder: {folder} exists already; choose another one or remove it")
    built = build_tokenizer(source, tokenizer, None, max_skipped)
    return _write(source, source.fingerprint(), built, folder, max_skipped, tokens_per_shard, progress)


def build_tokenizer(
    source: Source, config: TokenizerConfig, cache_dir: Path | None, max_skipped: int, fingerprint: str | None = None
) -> TextTokenizer:
    """The tokenizer for a corpus; a trained one is kept in `cache_dir` under the content it was trained on."""
    if config.kind != "bpe":
        return load_tokenizer(config)
    end_token = config.end_token or END_TOKEN
    if cache_dir is None:
        return load_tokenizer(config, _training_texts(source, max_skipped))
    minor = tokenizers.__version__.rsplit(".", 1)[0]
    key = _key(
        "bpe 1", minor, fingerprint or source.fingerprint(), str(config.vocab_size), end_token, str(MAX_TRAINING_CHARS)
    )
    file = cache_dir / "tokenizers" / f"{source.kind}-{key}.json"
    with _lock(file):
        if file.is_file():
            try:
                return TextTokenizer.from_file(file, end_token)
            except ConfigError as error:
                _log.warning("training the tokenizer again: %s", error)
        _log.info("training a BPE of %d tokens on %s", config.vocab_size, source.kind)
        built = load_tokenizer(config, _training_texts(source, max_skipped))
        partial = file.with_suffix(".partial")
        built.save(partial)
        partial.replace(file)
        return built


def build_shards(
    source: Source, fingerprint: str, tokenizer: TextTokenizer, cache_dir: Path, max_skipped: int, progress: bool = True
) -> Path:
    """The cached token shards of a finite corpus; written if absent, and again if damaged."""
    folder = cache_dir / "tokens" / f"{source.kind}-{_key('shards 1', fingerprint, tokenizer.fingerprint)}"
    with _lock(folder):
        for leftover in folder.parent.glob(f"{folder.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if folder.exists() and not _intact(folder):
            _log.warning("the cached tokens in %s are damaged and are written again", folder)
            shutil.rmtree(folder)
        if not folder.exists():
            _write(source, fingerprint, tokenizer, folder, max_skipped, TOKENS_PER_SHARD, progress)
        else:
            _tell_again(folder, source.kind, max_skipped)
    return folder


def _tell_again(folder: Path, corpus: str, max_skipped: int) -> None:
    """Name what was left out when the cached tokens were written, and hold it against today's limit.

    Raises:
        ConfigError: it was more than `max_skipped`.
    """
    meta = read_meta(folder)
    left_out = meta.get("left_out", {})
    skipped = Skipped(max_skipped, corpus)
    for problem in left_out.get("unreadable", []):
        skipped.add(problem)
    for where in left_out.get("empty", []):
        skipped.add_empty(where)
    skipped.num_empty = meta.get("empty", 0)  # of many, the first are named
    skipped.report()


def _write(
    source: Source,
    fingerprint: str,
    tokenizer: TextTokenizer,
    folder: Path,
    max_skipped: int,
    tokens_per_shard: int,
    progress: bool,
) -> dict[str, Any]:
    if folder.is_dir():
        folder.rmdir()  # an empty one the user made
    skipped = Skipped(max_skipped, source.kind)
    meta = write_shards(
        lambda split: documents(source, split, skipped),
        tokenizer,
        folder,
        skipped=skipped,
        facts={"source": source.kind, "source_fingerprint": fingerprint},
        tokens_per_shard=tokens_per_shard,
        progress=progress,
    )
    skipped.report()
    return meta


def _training_texts(source: Source, max_skipped: int) -> Iterator[str]:
    num_chars = 0
    skipped = Skipped(max_skipped, source.kind)
    for record in documents(source, "train", skipped):
        yield record.text[: MAX_TRAINING_CHARS - num_chars]
        num_chars += len(record.text)
        if num_chars >= MAX_TRAINING_CHARS:
            return
    if num_chars == 0:
        raise ConfigError([f"data: {source.kind} has no readable training document", *skipped.all_named()])


def _intact(folder: Path) -> bool:
    try:
        for split in SPLITS:
            open_shards(folder, split, Skipped(0))
    except ConfigError as error:
        _log.warning("%s", error)
        return False
    return True


def _lock(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
