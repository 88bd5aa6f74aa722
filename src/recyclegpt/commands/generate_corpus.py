"""`recyclegpt generate-corpus output_dir=FOLDER`: many texts of the backbone's own, or its answers, as token shards."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm.auto import tqdm

from recyclegpt.checkpoints.load import LoadedModel, load_trained
from recyclegpt.configuration.build import not_positive, read_settings
from recyclegpt.configuration.command_settings import corpus_for, read_decoding
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.console import print_table
from recyclegpt.data.generated import FACTS, GeneratedCorpus, GeneratedPiece
from recyclegpt.data.prompts import draw_prompts, encode_prompts, read_prompts
from recyclegpt.data.shards import token_dtype
from recyclegpt.data.source import SPLITS, Split
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import Decoder
from recyclegpt.decoding.corpus_writer import ENDS, BulkWriter, pieces, text_problems
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.models import RecycleGPT

_log = logging.getLogger(__name__)
DOCUMENTS = 2000
"""Written where nothing else says how many."""


@dataclass
class CorpusSettings:
    """What is written; conf/generate_corpus.yaml says what each means."""

    prompts: str | None
    num_documents: int | None
    num_val_documents: int
    prompt_tokens: int
    batch_size: int
    sampled_share: float

    def __post_init__(self) -> None:
        sizes = ["num_val_documents", "prompt_tokens", "batch_size"]
        problems = not_positive(self, *sizes, *([] if self.num_documents is None else ["num_documents"]))
        if not 0 <= self.sampled_share <= 1:
            problems.append(f"sampled_share: {self.sampled_share} is not between 0 (greedy) and 1")
        if problems:
            raise ConfigError(problems)


class Asked(NamedTuple):
    """What is continued, and by what it is known."""

    rows: dict[Split, list[list[int]]]
    tokenizer: TextTokenizer
    fingerprint: str


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
    trained = load_trained(cfg.checkpoint, device, cfg.module)
    strategy, context = decoding.make_strategy(), trained.model.config.context_length
    least = 1 if settings.prompts else settings.prompt_tokens
    if decoding.max_new_tokens > (room := context - least):
        raise ConfigError(f"decoding.max_new_tokens: they exceed the context of {context}; take {max(0, room)}")
    if strategy.needs_module and trained.model.recyclable is None:
        raise ConfigError(f"decoding.strategy: {strategy.name} needs a recyclable module; take autoregressive")
    if settings.prompts:
        asked = _answers(cfg, settings, trained.tokenizer, context - decoding.max_new_tokens)
    else:
        asked = _continuations(cfg, settings, trained)
    identity: dict[str, Any] = {
        "checkpoint": weights_digest(trained.model, with_module=strategy.num_recycled > 0),
        "data": asked.fingerprint,
        **{name: value for name, value in asdict(settings).items() if name != "prompts"},
        **{f"decoding.{name}": value for name, value in asdict(decoding).items() if name != "stop"},
        "decoding.num_recycled": strategy.num_recycled,
        "decoding.dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }
    corpus = GeneratedCorpus(Path(str(cfg.output_dir)).expanduser(), identity)
    meta, speed = corpus.finished(), None
    if meta is None:
        chat = trained.tokenizer.chat
        decoder = Decoder.optimised(
            trained.model, dtype, decoding.compile, release=True, draft_dtype=decoding.named_draft_dtype()
        )
        writer = BulkWriter(
            decoder, strategy, decoding.sampling(),
            decoding.seed, decoding.max_new_tokens, trained.tokenizer.stop_ids, asked.tokenizer.vocab_size,
            settings.batch_size, settings.sampled_share,
            trained.tokenizer.encode(chat.after_answer(), special_tokens=True) if settings.prompts and chat else (),
        )  # fmt: skip
        with corpus.writing():
            speed = _write(corpus, writer, asked.rows)
            num_pieces = {split: len(pieces(len(rows), settings.batch_size)) for split, rows in asked.rows.items()}
            meta = corpus.finish(num_pieces, asked.tokenizer, ENDS)
    corpus.clear()  # pieces left over where a process was killed between its last two steps
    print(f"{corpus.folder} is complete; train on it with data=tokenized data.path={corpus.folder}")
    _print(corpus.folder, meta, speed)
    return 0


def _continuations(cfg: DictConfig, settings: CorpusSettings, trained: LoadedModel) -> Asked:
    """Beginnings of documents. Those of both splits come from the corpus's own: no text crosses over."""
    source = corpus_for(cfg, trained)
    eos_id, length, seed = source.tokenizer.eos_id, settings.prompt_tokens, cfg.decoding.seed
    settings.num_documents = settings.num_documents or DOCUMENTS
    rows: dict[Split, list[list[int]]] = {
        "train": draw_prompts(source.corpus.sample(), eos_id, settings.num_documents, length, seed).tolist(),
        "val": draw_prompts(source.corpus.val, eos_id, settings.num_val_documents, length, seed).tolist(),
    }
    return Asked(rows, source.tokenizer, f"{source.corpus.fingerprint} {source.tokenizer.fingerprint}")


def _answers(cfg: DictConfig, settings: CorpusSettings, tokenizer: TextTokenizer, longest: int) -> Asked:
    """The prompts of a file, asked by the chat template where there is one; those of validation are drawn at random."""
    asked = read_prompts(str(settings.prompts), as_chats=True)
    rows = encode_prompts(tokenizer, asked, "characters")
    fitting = [row for row in rows if len(row) <= longest]
    if len(fitting) < len(rows):
        _log.warning(
            "%d of %d prompts leave no room for decoding.max_new_tokens in the context; they are left out",
            len(rows) - len(fitting), len(rows),
        )  # fmt: skip
    order, num_val = np.random.default_rng(cfg.decoding.seed).permutation(len(fitting)), settings.num_val_documents
    settings.num_documents = settings.num_documents or max(len(fitting) - num_val, 0)
    if not 1 <= settings.num_documents <= len(fitting) - num_val:
        wanted = f"{settings.num_documents} and num_val_documents={num_val}"
        raise ConfigError(f"num_documents: {wanted} of {len(fitting)} prompts in {settings.prompts}; ask for fewer")
    train = sorted(order[num_val : num_val + settings.num_documents].tolist())
    chosen: dict[Split, list[list[int]]] = {
        "train": [fitting[number] for number in train],
        "val": [fitting[number] for number in order[:num_val].tolist()],
    }
    digest = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()
    return Asked(chosen, tokenizer, f"{digest} {tokenizer.fingerprint}")


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
    corpus: GeneratedCorpus, writer: BulkWriter, prompts: Mapping[Split, Sequence[Sequence[int]]]
) -> float | None:
    """Write the pieces that are not there; tokens per second, None if the model wrote none."""
    work = [
        (split, number, first, stop)
        for split in SPLITS
        for number, (first, stop) in enumerate(pieces(len(prompts[split]), writer.batch))
        if corpus.read(split, number) is None
    ]
    total = sum(map(len, prompts.values()))
    present = total - sum(stop - first for _, _, first, stop in work)
    if present:
        _log.warning("resuming %s: %d of %d documents are there", corpus.folder, present, total)
    num_tokens, begin = 0, time.perf_counter()
    with tqdm(desc="generating", unit=" documents", total=total, initial=present, mininterval=1) as bar:

        def count(num_new: int) -> None:
            nonlocal num_tokens
            num_tokens += num_new
            bar.set_postfix_str(f"{num_tokens / (time.perf_counter() - begin):.0f} tokens/s", refresh=False)
            bar.update()

        for split, number, first, stop in work:
            asked = prompts[split][first:stop]
            written = writer.write(asked, SPLITS.index(split), first, count)
            piece = GeneratedPiece(
                np.concatenate([np.asarray(document.tokens, token_dtype(writer.vocab_size)) for document in written]),
                np.array([len(document.tokens) for document in written]),
                np.array([len(prompt) for prompt in asked]),
                np.array([document.num_new for document in written]),
                np.array([ENDS.index(document.end) for document in written]),
            )
            corpus.write(split, number, piece)
    return num_tokens / (time.perf_counter() - begin) if num_tokens else None


def _print(folder: Path, meta: dict[str, Any], speed: float | None) -> None:
    """A table for a reader, with how many documents ended in each way; then one JSON document."""
    splits = {split: meta["splits"][split] | meta[FACTS]["totals"][split] for split in SPLITS}
    columns = ("documents", "tokens", *ENDS)
    rows = [[split, *(facts[f"num_{column}"] for column in columns)] for split, facts in splits.items()]
    print_table(rows, header=["split", "documents", "tokens", *(f"ended: {end}" for end in ENDS)])
    print(json.dumps({"folder": str(folder), "tokens_per_s": speed, "splits": splits}))
