"""`recyclegpt evaluate`: held-out perplexities, bits per byte and agreement of a checkpoint, or lm-eval's tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.corpus import corpus_for
from recyclegpt.configuration.device import computing_dtype, device_and_dtype
from recyclegpt.console import print_table
from recyclegpt.evaluation import held_out_metrics, unigram_loss
from recyclegpt.files import finite


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
    """Measure on held-out text and print the table.

    Returns:
        The document that is printed last.
    """
    device, dtype = device_and_dtype(cfg.device, cfg.dtype)
    trained = load_trained(cfg.checkpoint, device)
    datamodule = corpus_for(cfg, trained)
    num_bytes = torch.zeros(trained.model.config.vocab_size, dtype=torch.long)
    num_bytes[: datamodule.vocab_size] = torch.from_numpy(datamodule.tokenizer.token_num_bytes())
    dtype = computing_dtype(cfg.dtype, dtype, trained.config)
    batches = datamodule.val_dataloader()
    metrics = held_out_metrics(trained.model, batches, num_bytes, None if dtype == torch.float32 else dtype)
    metrics["val/loss_unigram"] = unigram_loss(datamodule.unigram_counts(), datamodule.val_tokens(2_000_000))
    print_table(
        [(name.removeprefix("val/"), value) for name, value in metrics.items()], header=("held-out quality", "value")
    )
    return {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": len(batches) * datamodule.val_batch_size,
        "row_length": datamodule.row_length,
        "metrics": metrics,
    }
