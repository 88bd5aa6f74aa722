"""How text becomes rows of tokens: sources, tokenizer, packing, resumable streams, LightningDataModule."""

from typing import TYPE_CHECKING, Any

from recyclegpt.data.corpus import tokenize_corpus
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.packed_rows import Batch, Packing
from recyclegpt.data.shards import Tokenized
from recyclegpt.data.source import Record, Source
from recyclegpt.data.text_files import PythonStdlib, TextFiles
from recyclegpt.data.tokenizer import TextTokenizer, TokenizerConfig

if TYPE_CHECKING:
    from recyclegpt.data.datamodule import HFStreamData, PythonStdlibData, TextDataModule, TextFilesData, TokenizedData

__all__ = [
    "Batch",
    "HFStream",
    "HFStreamData",
    "Packing",
    "PythonStdlib",
    "PythonStdlibData",
    "Record",
    "Source",
    "TextDataModule",
    "TextFiles",
    "TextFilesData",
    "TextTokenizer",
    "Tokenized",
    "TokenizedData",
    "TokenizerConfig",
    "tokenize_corpus",
]


def __getattr__(name: str) -> Any:
    # Late, because Lightning takes seconds to import and not every command needs it.
    if name in __all__:
        from recyclegpt.data import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
