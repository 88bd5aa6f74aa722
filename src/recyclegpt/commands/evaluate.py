"""`recyclegpt evaluate`: held-out perplexities, bits per byte and agreement of a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import torch

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.corpus import corpus_for
from recyclegpt.configuration.device import choose_device, computing_dtype
from recyclegpt.configuration.schemas import type_problems
from recyclegpt.console import print_table
from recyclegpt.errors import ConfigError
from recyclegpt.evaluation import held_out_metrics, unigram_loss

HELP = """usage: recyclegpt evaluate [KEY=VALUE ...]

Held-out quality of a checkpoint. Settings: checkpoint (a run folder or .ckpt file; default: the newest
under outputs/train), device, dtype; another corpus by data=text_files data.paths=[...].
With tasks=[...] (names of lm-eval, or blimp_local and wikitext_local with task_files.NAME=FILES, or paper): benchmarks,
scored in three ways. Settings: scorings, tasks_path, limit, num_fewshot, batch_size, bootstrap_iters,
decoding.num_recycled, decoding.strategy.
The last line is one JSON document."""


def run(argv: Sequence[str]) -> int:
    """The command."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP)
        return 0
    cfg = compose_or_explain("evaluate", list(argv))
    if cfg.tasks:
        from recyclegpt.commands.lm_eval import evaluate_tasks

        return evaluate_tasks(cfg)
    problems = type_problems(cfg, {"checkpoint": str, "device": str, "dtype": str, "seed": int})
    if problems:
        raise ConfigError(problems)
    device, dtype = choose_device(cfg.device, cfg.dtype, problems, "dtype")
    if problems:
        raise ConfigError(problems)
    trained = load_trained(cfg.checkpoint, device)
    datamodule = corpus_for(cfg, trained)
    num_bytes = torch.zeros(trained.model.config.vocab_size, dtype=torch.long)
    num_bytes[: datamodule.vocab_size] = torch.from_numpy(datamodule.tokenizer.token_num_bytes())
    dtype = computing_dtype(cfg.dtype, dtype, trained.config)
    autocast = None if dtype == torch.float32 else dtype
    batches = datamodule.val_dataloader()
    metrics = held_out_metrics(trained.model, batches, num_bytes, autocast)
    metrics["val/loss_unigram"] = unigram_loss(datamodule.unigram_counts(), datamodule.val_tokens(2_000_000))
    print_table(
        [(name.removeprefix("val/"), value) for name, value in metrics.items()], header=("held-out quality", "value")
    )
    document = {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": len(batches) * datamodule.val_batch_size,
        "row_length": datamodule.row_length,
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
    }
    print(json.dumps(document))
    return 0
