"""`recyclegpt evaluate`: held-out perplexities, bits per byte and agreement of a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import torch

from recyclegpt.cli.compose import compose_or_explain
from recyclegpt.cli.console import print_table
from recyclegpt.cli.generate import choose_device
from recyclegpt.cli.instantiate import build
from recyclegpt.cli.run_folder import to_plain
from recyclegpt.data import TextDataModule
from recyclegpt.errors import ConfigError
from recyclegpt.evaluation import held_out_metrics, unigram_loss
from recyclegpt.training.checkpoint import TOKENIZER, load_trained

HELP = """usage: recyclegpt evaluate [KEY=VALUE ...]

Held-out quality of a checkpoint. Settings: checkpoint (a run folder or .ckpt file; default: the newest
under outputs/train), device, dtype; another corpus by data=text_files data.paths=[...].
The last line is one JSON document."""


def run(argv: Sequence[str]) -> int:
    """The command."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP)
        return 0
    cfg = compose_or_explain("evaluate", list(argv))
    problems: list[str] = []
    device, dtype = choose_device(cfg.device, cfg.dtype, problems, "dtype")
    if problems:
        raise ConfigError(problems)
    trained = load_trained(cfg.checkpoint, device)
    if "data" in cfg:
        cfg.model.context_length = trained.model.config.context_length
        settings = to_plain(cfg)["data"]
        # The model knows only its own tokens, whatever tokenizer the group would build.
        own = {"kind": "file", "path": str(trained.path.parent / TOKENIZER), "end_token": trained.tokenizer.eos_token}
        if "tokenizer" in settings:
            settings["tokenizer"] = {"_target_": "recyclegpt.data.TokenizerConfig", **own}
    else:
        settings = dict(trained.config["data"])
    datamodule: TextDataModule = build(settings, "data")
    datamodule.prepare()
    if datamodule.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        raise ConfigError(
            f"data: its tokenizer differs from the one the model was trained with ({trained.path.parent / TOKENIZER}); "
            "tokenize the corpus with that one: data.tokenizer.kind=file data.tokenizer.path=..."
        )
    num_bytes = torch.zeros(trained.model.config.vocab_size, dtype=torch.long)
    num_bytes[: datamodule.vocab_size] = torch.from_numpy(datamodule.tokenizer.token_num_bytes())
    if cfg.dtype == "auto" and trained.config["trainer"]["precision"] in ("32-true", "64-true"):
        dtype = torch.float32
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
