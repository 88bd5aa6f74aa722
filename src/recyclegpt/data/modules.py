"""The data modules that `conf/data` names: each takes the settings of its source and of `TextDataModule`, flat."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from recyclegpt.data.datamodule import TextDataModule
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.shards import Tokenized
from recyclegpt.data.stdlib import PythonStdlib
from recyclegpt.data.text_files import TextFiles


class _OfSource(TextDataModule):
    source_type: ClassVar[type[Any]]

    def __init__(self, *arguments: Any, tokenizer: Any = None, **settings: Any) -> None:
        own = inspect.signature(self.source_type).parameters
        given = {key: settings.pop(key) for key in [*settings] if key in own}
        super().__init__(self.source_type(*arguments, **given), tokenizer, **settings)


class TextFilesData(_OfSource):
    """`TextDataModule` of `TextFiles`: any text on disk: files, folders and patterns."""

    source_type = TextFiles


class PythonStdlibData(_OfSource):
    """`TextDataModule` of `PythonStdlib`: the interpreter's own standard library."""

    source_type = PythonStdlib


class HFStreamData(_OfSource):
    """`TextDataModule` of `HFStream`: a dataset of the Hugging Face hub, streamed."""

    source_type = HFStream


class TokenizedData(_OfSource):
    """`TextDataModule` of `Tokenized`: token shards, which bring their own tokenizer."""

    source_type = Tokenized
