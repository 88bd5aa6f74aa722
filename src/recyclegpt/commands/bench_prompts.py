"""`recyclegpt bench prompts=FILE.jsonl checkpoint=...`: the decoders on a set of prompts, category by category."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from omegaconf import DictConfig

from recyclegpt.benchmark.grid import BenchConfig
from recyclegpt.benchmark.prompt_set import bench_prompts, fit_prompts, read_prompts
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.bench_grid import bench_config, read_grid
from recyclegpt.console import print_table
from recyclegpt.decoding import Decoder, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.hardware.contention import ExternalCpuLoad
from recyclegpt.hardware.device import measured_on, warn_contended
from recyclegpt.models import named_dtype
from recyclegpt.models.parameter_count import model_facts

COLUMNS = {
    "category": "category",
    "strategy": "strategy",
    "num_recycled": "m",
    "num_prompts": "prompts",
    "tokens_per_s": "tokens/s",
    "spread": "from-to",
    "speedup": "speedup",
    "speedup_spread": "from-to",
    "mean_accepted_length": "mean accepted length",
    "acceptance": "acceptance",
    "agreement": "agreement",
    "equal": "equal",
    "common_prefix": "common prefix",
}


def read_one(cfg: DictConfig) -> tuple[torch.device, BenchConfig, bool]:
    """Device, what to measure, and whether to compile: prompts of a set are decoded one at a time, in one format.

    Raises:
        ConfigError: naming all that cannot be measured.
    """
    grid = read_grid(cfg)
    problems = [
        f"bench.{name}: {values} are several, and a set of prompts is decoded with one"
        for name in ("new_tokens", "dtype", "compile")
        if len(values := getattr(grid.settings, name)) > 1
    ]
    if cfg.checkpoint is None:
        problems.append("prompts: text means nothing to random weights; set checkpoint=...")
    if problems:
        raise ConfigError(problems)
    return grid.device, bench_config(grid, grid.dtypes[0], cfg.seed, None), grid.compiles[0]


def measure_prompts(cfg: DictConfig, device: torch.device, config: BenchConfig, compiled: bool) -> dict[str, Any]:
    """Measure, and print the table.

    Returns:
        The document that `prompts.json` holds.
    """
    read = read_prompts(cfg.prompts)
    trained = load_trained(cfg.checkpoint, device)
    model, tokenizer = trained.model, trained.tokenizer
    if model.recyclable is None:
        raise ConfigError(
            "checkpoint: the model has no recyclable module, so there is no decoder to compare; train a module with "
            "`recyclegpt adapt` or `recyclegpt train`"
        )
    new_tokens = config.new_tokens[0]
    rows = fit_prompts(
        [tokenizer.encode_prompt(prompt.text) for prompt in read],
        model.config.context_length, new_tokens, tokenizer.eos_id,
    )  # fmt: skip
    by_category: dict[str, list[list[int]]] = defaultdict(list)
    for prompt, row in zip(read, rows, strict=True):
        by_category[prompt.category].append(row)
    facts = model_facts(model)
    dtype = named_dtype(config.dtype_name, device, decoding=True)
    decoder = Decoder.optimised(model, dtype, compiled, cfg.bench.kernels, release=True)
    strategies = [
        make_strategy(name, m) for m in config.num_recycled for name in config.strategies if name != "autoregressive"
    ]
    with ExternalCpuLoad() as load:
        measured = bench_prompts(decoder, by_category, strategies, new_tokens, config.repetitions, config.seed)
    document = {
        "prompts": str(cfg.prompts),
        "checkpoint": str(trained.path),
        "hardware": measured_on(device, load.share),
        "model": facts,
        "dtype": config.dtype_name,
        "compile": decoder.compiled,
        "new_tokens": new_tokens,
        "repetitions": config.repetitions,
        "rows": measured,
    }
    _print(document)
    return document


def _print(document: dict[str, Any]) -> None:
    hardware = document["hardware"]
    cells = [
        row | {key: "{:.3g}-{:.3g}".format(*row[key]) for key in ("spread", "speedup_spread")}
        for row in document["rows"]
    ]
    print_table([tuple(row[key] for key in COLUMNS) for row in cells], header=list(COLUMNS.values()))
    print(
        f"\n{document['model']['num_parameters']:,} parameters on {hardware['device']}, {hardware['threads']} threads, "
        f"{document['dtype']}; {document['new_tokens']} new tokens a prompt, one prompt at a time, greedy; median of "
        f"{document['repetitions']} interleaved repetitions after a warm-up\n"
        "mean accepted length: tokens per backbone pass; equal: share of texts that equal the autoregressive one; "
        "common prefix: tokens, on average, before the first that differs"
    )
    warn_contended(hardware)
