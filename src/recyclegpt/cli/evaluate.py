"""`recyclegpt evaluate`: held-out perplexities, bits per byte and agreement of a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from recyclegpt.cli.compose import compose_or_explain
from recyclegpt.cli.console import print_table
from recyclegpt.cli.generate import choose_device
from recyclegpt.cli.instantiate import build
from recyclegpt.cli.run_folder import to_plain
from recyclegpt.cli.settings import type_problems
from recyclegpt.data import TextDataModule
from recyclegpt.errors import ConfigError
from recyclegpt.evaluation import held_out_metrics, unigram_loss
from recyclegpt.training.checkpoint import TOKENIZER, Trained, load_trained
from recyclegpt.training.model_folder import CONFIG

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
        from recyclegpt.cli.evaluate_tasks import evaluate_tasks

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


def corpus_for(cfg: DictConfig, trained: Trained) -> TextDataModule:
    """The corpus a command reads with a checkpoint: that of `data=GROUP`, else the one it was trained on.

    Raises:
        ConfigError: it cannot be read, or its tokens are not the model's.
    """
    if "data" in cfg:
        cfg.model.context_length = _row_length(trained)
        settings = to_plain(cfg)["data"]
        # The model knows only its own tokens, whatever tokenizer the group would build.
        own = {"kind": "file", "path": str(trained.path.parent / TOKENIZER), "end_token": trained.tokenizer.eos_token}
        if "tokenizer" in settings:
            settings["tokenizer"] = {"_target_": "recyclegpt.data.TokenizerConfig", **own}
    else:
        settings = trained.config.get("data")
    datamodule = corpus_of(settings, None if "data" in cfg else trained.path)
    datamodule.prepare()
    if datamodule.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        if "data" not in cfg:
            raise ConfigError(
                f"data: the text that {trained.path} was trained on has changed since, and its tokenizer with it; "
                "evaluate and generate read any text with the model's own: data=GROUP data.KEY=VALUE; bench takes "
                "prompts=FILE.jsonl"
            )
        raise ConfigError(
            f"data: its tokenizer differs from the one the model was trained with ({trained.path.parent / TOKENIZER}); "
            "tokenize the corpus with that one: data.tokenizer.kind=file data.tokenizer.path=..."
        )
    return datamodule


def corpus_of(settings: Any, checkpoint: Path | None = None) -> TextDataModule:
    """The corpus that a config, or the config inside of a checkpoint, describes.

    A tokenizer that a run read from a file is read from where the run has put it, beside the checkpoint.

    Raises:
        ConfigError: it describes something else, or nothing that can be read; naming the checkpoint, if it is its.
    """
    if settings is None and checkpoint is not None and checkpoint.name == CONFIG:
        raise ConfigError(
            f"checkpoint: {checkpoint.parent} holds a model and no run, so no corpus; name one: evaluate and generate "
            "take data=GROUP data.KEY=VALUE, bench takes prompts=FILE.jsonl, or model=hf for the speed alone"
        )
    tokenizer = settings.get("tokenizer") if isinstance(settings, dict) else None
    if checkpoint is not None and isinstance(tokenizer, dict) and tokenizer.get("kind") == "file":
        settings = settings | {"tokenizer": tokenizer | {"path": str(checkpoint.parent / TOKENIZER)}}
    try:
        built = build(settings, "data")
    except ConfigError as error:
        if checkpoint is None:
            raise
        raise ConfigError(
            [f"checkpoint: the config of {checkpoint}: {problem}" for problem in error.problems]
        ) from error
    if not isinstance(built, TextDataModule):
        where = "data" if checkpoint is None else f"checkpoint: the config of {checkpoint}: data"
        raise ConfigError(f"{where}: {type(built).__name__} is no corpus; choose one with data=GROUP data.KEY=VALUE")
    return built


def _row_length(trained: Trained) -> int:
    """Length of the rows it was trained on: a pretrained backbone's context may be much longer."""
    data = trained.config.get("data")
    length = data.get("row_length") if isinstance(data, dict) else None
    context = trained.model.config.context_length
    return min(length, context) if isinstance(length, int) and length > 0 else context


def computing_dtype(name: str, chosen: torch.dtype, config: dict[str, Any]) -> torch.dtype:
    """The dtype to compute in: `chosen`, but `auto` means fp32 for a model whose config says it was trained in that."""
    trainer = config.get("trainer")
    precision = trainer.get("precision") if isinstance(trainer, dict) else None
    return torch.float32 if name == "auto" and precision in ("32-true", "64-true") else chosen
