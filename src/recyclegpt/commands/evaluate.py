"""`recyclegpt evaluate`: held-out perplexities, bits per byte and agreement of a checkpoint, or lm-eval's tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from recyclegpt.checkpoints.load import LoadedModel, load_trained
from recyclegpt.configuration.command_settings import (
    corpus_for,
    device_and_dtype,
    given_corpus,
    prepare_scoring,
    row_length,
)
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.console import print_table
from recyclegpt.data import TextFiles
from recyclegpt.data.corpus import whole_texts
from recyclegpt.evaluation import held_out_metrics, unigram_loss
from recyclegpt.evaluation.perplexity import NAMES, bits_name, score_texts
from recyclegpt.evaluation.scoring import Scorer
from recyclegpt.files import finite

if TYPE_CHECKING:
    from recyclegpt.data import TextDataModule


def run(argv: Sequence[str]) -> int:
    """The command."""
    cfg = compose_or_explain("evaluate", list(argv))
    if cfg.tasks:
        from recyclegpt.commands.lm_eval import evaluate_tasks

        document = evaluate_tasks(cfg)
    else:
        document = evaluate_corpus(cfg)
    print(json.dumps(finite(document)))
    return 0


def evaluate_corpus(cfg: DictConfig) -> dict[str, Any]:
    """Measure on held-out text, or on the whole of the files that `data=text_files` names, and print the table.

    Returns:
        The document that is printed last.
    """
    device, dtype = device_and_dtype(cfg.device, cfg.dtype)
    trained = load_trained(cfg.checkpoint, device, cfg.module)
    dtype, autocast = prepare_scoring(trained, cfg.dtype, dtype)
    about = {"checkpoint": str(trained.path), "step": trained.step, "dtype": str(dtype).removeprefix("torch.")}
    if "data" in cfg and isinstance((given := given_corpus(cfg, trained)).source, TextFiles):
        return about | _evaluate_files(cfg, given, trained, autocast)
    datamodule = corpus_for(cfg, trained)
    batches = datamodule.val_dataloader()
    num_bytes = torch.from_numpy(trained.tokenizer.token_num_bytes(trained.model.config.vocab_size))
    metrics = held_out_metrics(trained.model, batches, num_bytes, autocast)
    metrics["val/loss_unigram"] = unigram_loss(datamodule.unigram_counts(), datamodule.val_tokens(2_000_000))
    print_table(
        [(name.removeprefix("val/"), value) for name, value in metrics.items()], header=("held-out quality", "value")
    )
    rows = len(batches) * datamodule.val_batch_size
    return about | {"rows": rows, "row_length": datamodule.row_length, "metrics": metrics}


def _evaluate_files(
    cfg: DictConfig, given: TextDataModule, trained: LoadedModel, autocast: torch.dtype | None
) -> dict[str, Any]:
    """Every document of the given files, whole, whatever its length."""
    tokenizer, length = trained.tokenizer, row_length(trained)
    scorer = Scorer(trained.model, num_recycled=cfg.decoding.num_recycled, batch_size=cfg.batch_size, autocast=autocast)
    assert isinstance(given.source, TextFiles)
    texts = whole_texts(given.source, tokenizer, given.max_skipped)
    num_bytes = torch.from_numpy(tokenizer.token_num_bytes(trained.model.config.vocab_size))
    metrics, errors = score_texts(scorer, texts, tokenizer.encode_prompt(""), length, num_bytes)
    rows = []
    for scoring in scorer.scorings:
        names = [f"val/ppl_{NAMES[scoring]}", bits_name(scoring)]
        rows.append([scoring, *(cell for name in names for cell in (metrics[name], errors[name]))])
    print_table(rows, header=("whole text", "perplexity", "stderr", "bits/byte", "stderr"))
    print(f"\n{metrics['tokens']:,} tokens, {metrics['bytes']:,} bytes, in windows of {length} that overlap by half")
    return {"row_length": length, "num_recycled": scorer.num_recycled, "metrics": metrics, "stderr": errors}
