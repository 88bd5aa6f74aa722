"""`recyclegpt tokenize`: write a corpus to disk as token shards, once, for many runs."""

from __future__ import annotations

from collections.abc import Sequence

from recyclegpt.configuration.command_settings import corpus_of
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.console import print_table
from recyclegpt.data import Tokenized, tokenize_corpus
from recyclegpt.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """The command."""
    cfg = compose_or_explain("tokenize", list(argv))
    datamodule = corpus_of(cfg.data)
    source, tokenizer = datamodule.source, datamodule.tokenizer_config
    if isinstance(source, Tokenized) or tokenizer is None:
        raise ConfigError("data: data=tokenized is tokenized already; choose python_stdlib, text_files or hf_stream")
    meta = tokenize_corpus(source, tokenizer, str(cfg.output_dir), max_skipped=datamodule.max_skipped)
    names = ("num_documents", "num_tokens", "num_bytes")
    rows = [(split, *(facts[name] for name in names)) for split, facts in meta["splits"].items()]
    print_table(rows, header=("split", "documents", "tokens", "bytes"))
    print(f"\nwritten to {cfg.output_dir}; train on it with data=tokenized data.path={cfg.output_dir}")
    return 0
