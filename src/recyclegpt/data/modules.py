"""The data modules that `conf/data` names: each takes the settings of its source and of `TextDataModule`, flat."""

from __future__ import annotations

from typing import Any

from recyclegpt.data.datamodule import TextDataModule
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.shards import Tokenized
from recyclegpt.data.stdlib import PythonStdlib
from recyclegpt.data.text_files import TextFiles


class TextFilesData(TextDataModule):
    """`TextDataModule` of `TextFiles`: any text on disk: files, folders and patterns."""

    def __init__(
        self,
        paths: list[str],
        val_paths: list[str] | None = None,
        val_fraction: float = 0.05,
        field: str = "text",
        as_text: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(TextFiles(paths, val_paths, val_fraction, field, as_text), **shared)


class PythonStdlibData(TextDataModule):
    """`TextDataModule` of `PythonStdlib`: the interpreter's own standard library."""

    def __init__(self, root: str | None = None, **shared: Any) -> None:
        super().__init__(PythonStdlib(root), **shared)


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
        **shared: Any,
    ) -> None:
        text = (name, config, train_split, val_split, num_val_documents, field, data_files, revision)
        super().__init__(HFStream(*text, shuffle_buffer), **shared)


class TokenizedData(TextDataModule):
    """`TextDataModule` of `Tokenized`: token shards, which bring their own tokenizer."""

    def __init__(self, path: str, verify: bool = True, tokenizer: None = None, **shared: Any) -> None:
        super().__init__(Tokenized(path, verify), tokenizer, **shared)
