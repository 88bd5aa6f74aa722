"""`recyclegpt tokenize`: write a corpus to disk as token shards, once, for many runs."""

from __future__ import annotations

from collections.abc import Sequence

from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.corpus import corpus_of
from recyclegpt.configuration.schemas import type_problems
from recyclegpt.console import print_table
from recyclegpt.data import Tokenized, tokenize_corpus
from recyclegpt.errors import ConfigError

HELP = """usage: recyclegpt tokenize output=FOLDER [data=GROUP] [data.KEY=VALUE ...]

Writes a corpus as token shards, for training with data=tokenized data.path=FOLDER. Data groups:
python_stdlib (default), text_files (data.paths=[...]), hf_stream (data.name=...).
The tokenizer is data.tokenizer.kind=bpe|byte|file."""


def run(argv: Sequence[str]) -> int:
    """The command."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP)
        return 0
    cfg = compose_or_explain("tokenize", list(argv))
    if problems := type_problems(cfg, {"output": str}):
        raise ConfigError(problems)
    datamodule = corpus_of(cfg.data)
    source, tokenizer = datamodule.source, datamodule.tokenizer_config
    if isinstance(source, Tokenized) or tokenizer is None:
        raise ConfigError("data: data=tokenized is tokenized already; choose python_stdlib, text_files or hf_stream")
    meta = tokenize_corpus(source, tokenizer, cfg.output, max_skipped=datamodule.max_skipped)
    print_table(
        [
            (split, facts["num_documents"], facts["num_tokens"], facts["num_bytes"])
            for split, facts in meta["splits"].items()
        ],
        header=("split", "documents", "tokens", "bytes"),
    )
    print(f"\nwritten to {cfg.output}; train on it with data=tokenized data.path={cfg.output}")
    return 0
