"""How text becomes rows of tokens: sources, tokenizer, packing, resumable streams, LightningDataModule."""

from recyclegpt.data.batch import Batch
from recyclegpt.data.corpus import tokenize_corpus
from recyclegpt.data.datamodule import TextDataModule
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.modules import HFStreamData, PythonStdlibData, TextFilesData, TokenizedData
from recyclegpt.data.packing import Packing
from recyclegpt.data.shards import Tokenized
from recyclegpt.data.source import Record, Source
from recyclegpt.data.stdlib import PythonStdlib
from recyclegpt.data.text_files import TextFiles
from recyclegpt.data.tokenizer import TextTokenizer, TokenizerConfig

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
