"""`recyclegpt generate-corpus output_dir=FOLDER`: many documents of the backbone's own text, as token shards."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.corpus import corpus_for
from recyclegpt.configuration.device import read_decoding
from recyclegpt.configuration.schemas import not_positive, read_settings
from recyclegpt.console import print_table
from recyclegpt.data.generated import FACTS, GeneratedCorpus, GeneratedPiece
from recyclegpt.data.prompts import draw_prompts
from recyclegpt.data.shards import token_dtype
from recyclegpt.data.source import SPLITS, Split
from recyclegpt.decoding import Decoder
from recyclegpt.decoding.corpus_writer import ENDS, BulkWriter, batches, text_problems
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.models import RecycleGPT

_log = logging.getLogger(__name__)


@dataclass
class CorpusSettings:
    """How many documents; conf/generate_corpus.yaml says what each means."""

    num_documents: int
    num_val_documents: int
    prompt_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        if problems := not_positive(self, *vars(self)):
            raise ConfigError(problems)


def run(argv: Sequence[str]) -> int:
    """The command: writes the corpus, or what is left of it to write, and prints what it holds."""
    cfg = compose_or_explain("generate_corpus", list(argv))
    problems = Problems()
    with problems.under():
        settings = read_settings(CorpusSettings, cfg)
    with problems.under():
        decoding, device, dtype = read_decoding(cfg)
        problems.found += [f"decoding.{problem}" for problem in text_problems(decoding.make_strategy())]
        if decoding.stop:
            problems.found.append("decoding.stop: documents end with the end token; leave it out")
    problems.raise_any()
    trained = load_trained(cfg.checkpoint, device)
    strategy, context = decoding.make_strategy(), trained.model.config.context_length
    if decoding.max_new_tokens > (room := context - settings.prompt_tokens):
        raise ConfigError(
            f"decoding.max_new_tokens: with prompt_tokens they exceed the context of {context}; take {max(0, room)}"
        )
    if strategy.needs_module and trained.model.recyclable is None:
        raise ConfigError(
            f"decoding.strategy: {strategy.name} needs a recyclable module and the model of {trained.path} has none; "
            "use decoding.strategy=autoregressive"
        )
    source = corpus_for(cfg, trained)
    identity: dict[str, Any] = {
        "checkpoint": weights_digest(trained.model, with_module=strategy.num_recycled > 0),
        "data": f"{source.corpus.fingerprint} {source.tokenizer.fingerprint}",
        **asdict(settings),
        **{f"decoding.{name}": value for name, value in asdict(decoding).items() if name != "stop"},
        "decoding.num_recycled": strategy.num_recycled,
        "decoding.dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }
    corpus = GeneratedCorpus(Path(str(cfg.output_dir)).expanduser(), identity)
    meta, speed = corpus.finished(), None
    if meta is None:
        # Prompts of both splits come from the corpus's own: no text crosses over.
        eos_id, length, seed = source.tokenizer.eos_id, settings.prompt_tokens, decoding.seed
        prompts: dict[Split, NDArray[np.int64]] = {
            "train": draw_prompts(source.corpus.sample(), eos_id, settings.num_documents, length, seed),
            "val": draw_prompts(source.corpus.val, eos_id, settings.num_val_documents, length, seed),
        }
        decoder = Decoder.optimised(
            trained.model, dtype, decoding.compile, release=True, draft_dtype=decoding.named_draft_dtype()
        )
        writer = BulkWriter(
            decoder, strategy, decoding.sampling(), seed, decoding.max_new_tokens,
            trained.tokenizer.stop_ids, source.vocab_size,
        )  # fmt: skip
        with corpus.writing():
            speed = _write(corpus, writer, prompts, settings.batch_size)
            num_pieces = {split: len(batches(len(prompts[split]), settings.batch_size)) for split in SPLITS}
            meta = corpus.finish(num_pieces, source.tokenizer, ENDS)
    corpus.clear()  # pieces left over where a process was killed between its last two steps
    print(f"{corpus.folder} is complete; train on it with data=tokenized data.path={corpus.folder}")
    _print(corpus.folder, meta, speed)
    return 0


def weights_digest(model: RecycleGPT, with_module: bool) -> str:
    """SHA-256 of the weights, their names, shapes and types: the same wherever a checkpoint lies.

    Without the module it is that of the backbone, whatever module was trained on it.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if with_module or not name.startswith("recyclable."):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(
    corpus: GeneratedCorpus, writer: BulkWriter, prompts: Mapping[Split, NDArray[np.int64]], batch: int
) -> float | None:
    """Write the pieces that are not there; tokens per second, None if the model wrote none."""
    work = [
        (split, number, first, stop)
        for split in SPLITS
        for number, (first, stop) in enumerate(batches(len(prompts[split]), batch))
        if corpus.read(split, number) is None
    ]
    total = sum(map(len, prompts.values()))
    present = total - sum(stop - first for _, _, first, stop in work)
    if present:
        _log.warning("resuming %s: %d of %d documents are there", corpus.folder, present, total)
    num_tokens, begin = 0, time.perf_counter()
    with tqdm(desc="generating", unit=" documents", total=total, initial=present, mininterval=1) as bar:
        for split, number, first, stop in work:
            written = writer.write(prompts[split][first:stop].tolist(), SPLITS.index(split), first)
            piece = GeneratedPiece(
                np.concatenate([np.asarray(document.tokens, token_dtype(writer.vocab_size)) for document in written]),
                np.array([document.num_new for document in written]),
                np.array([ENDS.index(document.end) for document in written]),
            )
            corpus.write(split, number, piece)
            num_tokens += int(piece.num_new.sum())
            bar.update(stop - first)
    return num_tokens / (time.perf_counter() - begin) if num_tokens else None


def _print(folder: Path, meta: dict[str, Any], speed: float | None) -> None:
    """A table for a reader, with how many documents ended in each way; then one JSON document."""
    splits = {split: meta["splits"][split] | meta[FACTS]["totals"][split] for split in SPLITS}
    columns = ("documents", "tokens", *ENDS)
    rows = [[split, *(facts[f"num_{column}"] for column in columns)] for split, facts in splits.items()]
    print_table(rows, header=["split", "documents", "tokens", *(f"ended: {end}" for end in ENDS)])
    print(json.dumps({"folder": str(folder), "tokens_per_s": speed, "splits": splits}))
