"""How text becomes rows of tokens: sources, tokenizer, packing, resumable streams, LightningDataModule."""

from recyclegpt.data.batch import Batch
from recyclegpt.data.corpus import tokenize_corpus
from recyclegpt.data.datamodule import TextDataModule
from recyclegpt.data.groups import (
    hf_stream_data,
    python_stdlib_data,
    text_files_data,
    tokenized_data,
)
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.packing import Packing
from recyclegpt.data.sources import Record, Source
from recyclegpt.data.stdlib import PythonStdlib
from recyclegpt.data.text_files import TextFiles
from recyclegpt.data.tokenized import Tokenized
from recyclegpt.data.tokenizer import TextStream, TextTokenizer, TokenizerConfig

__all__ = [
    "Batch",
    "HFStream",
    "Packing",
    "PythonStdlib",
    "Record",
    "Source",
    "TextDataModule",
    "TextFiles",
    "TextStream",
    "TextTokenizer",
    "Tokenized",
    "TokenizerConfig",
    "hf_stream_data",
    "python_stdlib_data",
    "text_files_data",
    "tokenize_corpus",
    "tokenized_data",
]
