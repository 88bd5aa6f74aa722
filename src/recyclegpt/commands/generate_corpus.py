"""`recyclegpt generate bulk.out=FOLDER`: a corpus in the backbone's own words, as token shards."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from tqdm.auto import tqdm

from recyclegpt import __version__
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.corpus import corpus_for
from recyclegpt.data import TextDataModule
from recyclegpt.data.generated import FACTS, GeneratedCorpus, GeneratedPiece
from recyclegpt.data.prompts import draw_prompts
from recyclegpt.data.shard_writer import token_dtype
from recyclegpt.data.sources import SPLITS, Split
from recyclegpt.decoding import Decoder, SamplingConfig, Strategy
from recyclegpt.decoding.corpus_writer import ENDS, BulkConfig, BulkWriter, batches
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.hardware.description import name_of
from recyclegpt.models import RecycleGPT

_log = logging.getLogger(__name__)


def generate_corpus(
    cfg: DictConfig,
    bulk: BulkConfig,
    strategy: Strategy,
    sampling: SamplingConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Write the corpus that checked settings describe, or what is left of it to write, and say what it holds.

    Raises:
        ConfigError: the settings do not fit the checkpoint, its corpus, or what the folder holds.
        RunError: the disk refuses a piece.
    """
    trained = load_trained(cfg.checkpoint, device)
    problems = bulk.problems_with(trained.model.config.context_length)
    if strategy.num_recycled and trained.model.recyclable is None:
        problems.append(
            f"decoding.strategy: {strategy.name} needs a recyclable module and the model of {trained.path} has none; "
            "use decoding.strategy=autoregressive"
        )
    if problems:
        raise ConfigError(problems)
    source = corpus_for(cfg, trained)
    identity = {
        "checkpoint": weights_digest(trained.model, with_module=strategy.num_recycled > 0),
        "data": f"{source.corpus.fingerprint} {source.tokenizer.fingerprint}",
        **{f"bulk.{name}": value for name, value in asdict(bulk).items()},
        "decoding.num_recycled": strategy.num_recycled,
        "decoding.confidence": strategy.confidence_threshold,
        "decoding.strategy": strategy.name,
        **{f"decoding.{name}": value for name, value in asdict(sampling).items()},
        "decoding.seed": cfg.decoding.seed,
        "decoding.dtype": str(dtype).removeprefix("torch."),
        "decoding.compile": cfg.decoding.compile,
        "device": device.type,
    }
    made_with = {
        "checkpoint": str(trained.path),
        "recyclegpt": __version__,
        "torch": torch.__version__,
        "processor": name_of(device),
        "threads": torch.get_num_threads(),
    }
    corpus = GeneratedCorpus(Path(cfg.bulk.out).expanduser(), identity, made_with)
    meta, speed = corpus.finished(), None
    if meta is not None:
        corpus.clear()  # left over where a process was killed between its last two steps
        print(f"{corpus.folder} is complete already; train on it with data=tokenized data.path={corpus.folder}")
    else:
        if sampling.greedy:
            _log.warning(
                "decoding.temperature=0 writes what is likeliest, where small models run in circles; "
                "decoding.temperature=1 draws from the backbone's distribution"
            )
        stop_ids, vocab_size = trained.tokenizer.stop_ids, source.vocab_size
        prompts = _draw(source, bulk, cfg.decoding.seed)
        decoder = Decoder.optimised(trained.model, dtype, cfg.decoding.compile, release=True)
        writer = BulkWriter(decoder, strategy, sampling, cfg.decoding.seed, bulk.new_tokens, stop_ids, vocab_size)
        with corpus.writing():
            meta = corpus.finished()  # where another process was faster than this one's first look
            if meta is not None:
                corpus.clear()
            else:
                try:
                    speed = _write(corpus, writer, prompts, bulk.batch)
                    num_pieces = {split: len(batches(len(prompts[split]), bulk.batch)) for split in SPLITS}
                    meta = corpus.finish(num_pieces, source.tokenizer, ENDS)
                except OSError as error:
                    raise RunError(
                        f"{corpus.folder} cannot be written ({error}); make room, and the same command goes on"
                    ) from error
        print(f"written to {corpus.folder}; train on it with data=tokenized data.path={corpus.folder}")
    _tell(corpus.folder, meta, speed)
    return 0


def weights_digest(model: RecycleGPT, with_module: bool) -> str:
    """SHA-256 of the weights, their names, shapes and types: the same wherever a checkpoint lies.

    Without the module it is that of the backbone, whatever module was trained on it.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if name.startswith("recyclable.") and not with_module:
            continue
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _draw(source: TextDataModule, bulk: BulkConfig, seed: int) -> dict[Split, NDArray[np.int64]]:
    """Prompts of both splits from the corpus's own, (num, prompt_tokens) each: no text crosses over."""
    eos_id, length = source.tokenizer.eos_id, bulk.prompt_tokens
    return {
        "train": draw_prompts(source.corpus.sample(), eos_id, bulk.num_documents, length, seed),
        "val": draw_prompts(source.corpus.val, eos_id, bulk.num_val_documents, length, seed),
    }


def _write(
    corpus: GeneratedCorpus, writer: BulkWriter, prompts: Mapping[Split, NDArray[np.int64]], batch: int
) -> float | None:
    """Write the pieces that are not there; how many tokens a second the model wrote, None if it wrote none."""
    work = [
        (split, number, first, stop)
        for split in SPLITS
        for number, (first, stop) in enumerate(batches(len(prompts[split]), batch))
        if corpus.read(split, number) is None
    ]
    total = sum(map(len, prompts.values()))
    present = total - sum(stop - first for _, _, first, stop in work)
    if present:
        _log.warning("going on with %s: %d of %d documents are there", corpus.folder, present, total)
    dtype = token_dtype(writer.vocab_size)
    num_tokens, begin = 0, time.perf_counter()
    with tqdm(desc="generating", unit=" documents", total=total, initial=present, mininterval=1) as bar:
        for split, number, first, stop in work:
            written = writer.write(prompts[split][first:stop].tolist(), SPLITS.index(split), first)
            piece = GeneratedPiece(
                np.concatenate([np.asarray(document.tokens, dtype) for document in written]),
                np.array([document.num_new for document in written]),
                np.array([ENDS.index(document.end) for document in written]),
            )
            corpus.write(split, number, piece)
            num_tokens += int(piece.num_new.sum())
            bar.set_postfix_str(f"{num_tokens / (time.perf_counter() - begin):,.0f} tokens/s", refresh=False)
            bar.update(stop - first)
    return num_tokens / (time.perf_counter() - begin) if num_tokens else None


def _tell(folder: Path, meta: dict[str, Any], speed: float | None) -> None:
    """A line for a reader, and the last one for a program."""
    totals = meta[FACTS]["totals"]
    splits = {split: {**_counts(meta["splits"][split]), **totals[split]} for split in SPLITS}
    num_documents = sum(facts["num_documents"] for facts in splits.values())
    num_tokens = sum(facts["num_tokens"] for facts in splits.values())
    ended = sum(facts["num_stop"] for facts in splits.values()) / num_documents
    rate = "" if speed is None else f", {speed:,.0f} tokens/s"
    print(f"{num_documents:,} documents, {num_tokens:,} tokens, {ended:.0%} ended by themselves{rate}")
    if unknown := sum(facts["num_unknown"] for facts in splits.values()):
        print(f"{unknown:,} ended before a token id that the tokenizer does not know: the model has learnt little yet")
    document = {
        "folder": str(folder),
        "documents": num_documents,
        "tokens": num_tokens,
        "ended_by_themselves": ended,
        "tokens_per_s": speed,
        "splits": splits,
    }
    print(json.dumps(document))


def _counts(facts: dict[str, Any]) -> dict[str, int]:
    return {name: facts[name] for name in ("num_documents", "num_tokens", "num_bytes")}
