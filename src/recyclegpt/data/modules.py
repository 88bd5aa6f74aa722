"""The data modules that `conf/data` names: each takes the settings of its source and those of `TextDataModule`, flat.

So `data.paths` and `data.batch_size` stand side by side on the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recyclegpt.data.datamodule import TextDataModule
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.shards import Tokenized
from recyclegpt.data.stdlib import PythonStdlib
from recyclegpt.data.text_files import TextFiles
from recyclegpt.data.tokenizer import TokenizerConfig


class TextFilesData(TextDataModule):
    """`TextDataModule` of `TextFiles`: any text on disk: files, folders and patterns."""

    def __init__(
        self,
        paths: list[str],
        val_paths: list[str] | None = None,
        val_fraction: float = 0.05,
        field: str = "text",
        *,
        tokenizer: TokenizerConfig,
        batch_size: int,
        num_val_batches: int = 16,
        val_batch_size: int | None = None,
        mask_documents: bool = False,
        num_workers: int | None = 0,
        cache_dir: str | Path = "~/.cache/recyclegpt",
        max_skipped: int = 100,
    ) -> None:
        source = TextFiles(paths, val_paths, val_fraction, field)
        shared = (num_val_batches, val_batch_size, mask_documents, num_workers, cache_dir, max_skipped)
        super().__init__(source, tokenizer, batch_size, *shared)


class PythonStdlibData(TextDataModule):
    """`TextDataModule` of `PythonStdlib`: the interpreter's own standard library."""

    def __init__(
        self,
        root: str | None = None,
        *,
        tokenizer: TokenizerConfig,
        batch_size: int,
        num_val_batches: int = 16,
        val_batch_size: int | None = None,
        mask_documents: bool = False,
        num_workers: int | None = 0,
        cache_dir: str | Path = "~/.cache/recyclegpt",
        max_skipped: int = 100,
    ) -> None:
        source = PythonStdlib(root)
        shared = (num_val_batches, val_batch_size, mask_documents, num_workers, cache_dir, max_skipped)
        super().__init__(source, tokenizer, batch_size, *shared)


class HFStreamData(TextDataModule):
    """`TextDataModule` of `HFStream`: a dataset of the Hugging Face hub, streamed."""

    def __init__(
        self,
        name: str,
        config: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        num_val_documents: int = 1000,
        field: str = "text",
        data_files: str | list[str] | dict[str, Any] | None = None,
        revision: str | None = None,
        shuffle_buffer: int = 1000,
        *,
        tokenizer: TokenizerConfig,
        batch_size: int,
        num_val_batches: int = 16,
        val_batch_size: int | None = None,
        mask_documents: bool = False,
        num_workers: int | None = 0,
        cache_dir: str | Path = "~/.cache/recyclegpt",
        max_skipped: int = 100,
    ) -> None:
        part = (config, train_split, val_split, num_val_documents, field, data_files, revision)
        source = HFStream(name, *part, shuffle_buffer)
        shared = (num_val_batches, val_batch_size, mask_documents, num_workers, cache_dir, max_skipped)
        super().__init__(source, tokenizer, batch_size, *shared)


class TokenizedData(TextDataModule):
    """`TextDataModule` of `Tokenized`: token shards, which bring their own tokenizer."""

    def __init__(
        self,
        path: str,
        verify: bool = True,
        *,
        tokenizer: None = None,
        batch_size: int,
        num_val_batches: int = 16,
        val_batch_size: int | None = None,
        mask_documents: bool = False,
        num_workers: int | None = 0,
        cache_dir: str | Path = "~/.cache/recyclegpt",
        max_skipped: int = 100,
    ) -> None:
        source = Tokenized(path, verify)
        shared = (num_val_batches, val_batch_size, mask_documents, num_workers, cache_dir, max_skipped)
        super().__init__(source, tokenizer, batch_size, *shared)
