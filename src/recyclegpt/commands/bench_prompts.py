"""`recyclegpt bench prompts=FILE.jsonl checkpoint=...`: the decoders on a set of prompts, category by category."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm.auto import tqdm

from recyclegpt.benchmark.prompt_set import Row, bench_prompts, fit_prompts
from recyclegpt.benchmark.speed import decode
from recyclegpt.benchmark.tables import text_tables
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.bench_grid import Grid
from recyclegpt.commands.bench_table import print_rows, print_tables
from recyclegpt.configuration.command_settings import corpus_for
from recyclegpt.data.prompts import encode_prompts, read_prompts
from recyclegpt.decoding import Autoregressive
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json
from recyclegpt.hardware.device import ExternalCpuLoad, measured_on
from recyclegpt.models.parameter_count import model_facts


def measure_prompts(cfg: DictConfig, grid: Grid, folder: Path) -> dict[str, Any]:
    """Decode prompts one at a time, in one number format, and print the table.

    `prompts.json` in the folder is written anew after each prompt, so that nothing measured is lost with the process.

    Returns:
        The document that it holds at the end.

    Raises:
        ConfigError: naming all that cannot be measured.
    """
    settings = grid.settings
    problems = [
        f"bench.{name}: {values} are several, and a set of prompts is decoded with one"
        for name in ("new_tokens", "dtype", "compile")
        if len(values := getattr(settings, name)) > 1
    ]
    if cfg.checkpoint is None:
        problems.append("prompts: text means nothing to random weights; set checkpoint=...")
    if problems:
        raise ConfigError(problems)
    found = read_prompts(cfg.prompts)
    trained = load_trained(cfg.checkpoint, grid.device)
    model, tokenizer = trained.model, trained.tokenizer
    strategies = settings.decoders(model.recyclable is not None)
    if not strategies:
        raise ConfigError(
            "checkpoint: the model has no recyclable module, so there is no decoder to compare; give "
            "bench.drafters=[ngram], or train a module with `recyclegpt adapt` or `recyclegpt train`"
        )
    (new_tokens,), (dtype,), (compiled,) = settings.new_tokens, grid.dtypes, settings.compile
    encoded = encode_prompts(tokenizer, found, cfg.prompt_special_tokens)
    encoded = fit_prompts(encoded, model.config.context_length, new_tokens, tokenizer.eos_id)
    by_category: dict[str, list[list[int]]] = defaultdict(list)
    for prompt, row in zip(found, encoded, strict=True):
        by_category[prompt.category].append(row)
    facts = model_facts(model)
    decoder, of_all = grid.decoder(model, dtype, compiled, release=not settings.tables)
    document: dict[str, Any] = {
        "prompts": str(cfg.prompts),
        "checkpoint": str(trained.path),
        "hardware": None,
        "model": facts,
        "dtype": of_all["dtype"],
        "compile": of_all["compile"],
        "new_tokens": new_tokens,
        "repetitions": settings.repetitions,
        "complete": False,
    }
    total = len(found) * settings.repetitions
    with ExternalCpuLoad() as load, tqdm(desc="decoding", unit=" prompts", total=total, mininterval=1) as bar:

        def keep(measured: list[Row]) -> None:
            write_json(folder / "prompts.json", {**document, "rows": [of_all | row for row in measured]})
            bar.update()

        rows = bench_prompts(decoder, by_category, strategies, new_tokens, settings.repetitions, keep)
    hardware = measured_on(grid.device, load.share)
    document |= {"hardware": hardware, "complete": True, "rows": [of_all | row for row in rows]}
    if settings.tables:
        texts = decode(decoder, encoded, Autoregressive(), new_tokens).texts
        counts_V = torch.zeros(0)
        with contextlib.suppress(ConfigError):  # a model without a run has no corpus
            counts_V = corpus_for(cfg, trained).unigram_counts()
        document["tables"] = text_tables(model, encoded, texts, max(settings.num_recycled), counts_V)
    write_json(folder / "prompts.json", document)
    notes = [
        f"{document['model']['num_parameters']:,} parameters, {document['dtype']}",
        f"{new_tokens} new tokens a prompt, one prompt at a time, greedy",
        f"median of {settings.repetitions} interleaved repetitions after a warm-up",
        "mean accepted length: tokens per backbone pass; equal: share of texts that equal the autoregressive one",
    ]
    print_rows(document["rows"], hardware, notes)
    if settings.tables:
        print_tables(document["tables"])
    return document
