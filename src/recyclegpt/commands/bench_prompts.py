"""`recyclegpt bench prompts=FILE.jsonl checkpoint=...`: the decoders on a set of prompts, category by category."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from recyclegpt.benchmark.prompt_set import Contender, Texts, decode_rounds, fit_prompts, prompt_rows
from recyclegpt.benchmark.tables import cost_tables, text_tables
from recyclegpt.checkpoints.load import LoadedModel, load_trained
from recyclegpt.commands.bench_grid import Grid, GridSettings
from recyclegpt.commands.bench_table import print_rows, print_tables
from recyclegpt.commands.generate_corpus import weights_digest
from recyclegpt.configuration.command_settings import corpus_for
from recyclegpt.data.prompts import Prompt, encode_prompts, read_prompts
from recyclegpt.decoding import Autoregressive
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json
from recyclegpt.hardware.device import ExternalCpuLoad, measured_on
from recyclegpt.models.parameter_count import model_facts


def measure_prompts(cfg: DictConfig, grid: Grid, checkpoint: str | None, folder: Path) -> dict[str, Any]:
    """Decode the prompts of `cfg.prompts` with a checkpoint and print the table.

    `prompts.jsonl` in the folder gets a line after each prompt, from which the same command continues.

    Returns:
        The document that `prompts.json` in the folder holds.

    Raises:
        ConfigError: naming all that cannot be measured.
    """
    settings = grid.settings
    problems = [
        f"bench.{name}: {values} are several, and a set of prompts is decoded with one"
        for name in ("new_tokens", "batch", "compile")
        if len(values := getattr(settings, name)) > 1
    ]
    if checkpoint is None:
        problems.append("prompts: text means nothing to random weights; set checkpoint=...")
    if problems or checkpoint is None:
        raise ConfigError(problems)
    found = _evenly(read_prompts(cfg.prompts, cfg.prompt_chat), settings.num_prompts)
    trained = load_trained(checkpoint, grid.device, cfg.get("module"))
    model, tokenizer = trained.model, trained.tokenizer
    if not settings.decoders(model.recyclable is not None):
        raise ConfigError(
            "checkpoint: the model has no recyclable module, so there is no decoder to compare; give "
            "bench.drafters=[ngram], or train a module with `recyclegpt adapt` or `recyclegpt train`"
        )
    (new_tokens,), (batch,) = settings.new_tokens, settings.batch
    encoded = encode_prompts(tokenizer, found, cfg.prompt_special_tokens)
    encoded = fit_prompts(encoded, model.config.context_length, new_tokens, tokenizer.eos_id)
    by_category: dict[str, list[list[int]]] = defaultdict(list)
    for prompt, row in zip(found, encoded, strict=True):
        by_category[prompt.category].append(row)
    facts, identity = model_facts(model), weights_digest(model, with_module=True)
    contenders = _contenders(grid, trained, settings)
    stops = tuple(tokenizer.stop_ids) if settings.stop_at_end else ()
    texts = Texts(new_tokens, stops, grid.sampling, batch, settings.repetitions, cfg.seed)
    header = {
        "weights": identity,
        "prompts": by_category,
        "decoders": [one.about | {"label": one.strategy.label} for one in contenders],
        "texts": dataclasses.asdict(texts) | {"repetitions": None},
    }
    with ExternalCpuLoad() as load:
        rounds = decode_rounds(contenders, by_category, texts, folder / "prompts.jsonl", header)
    document: dict[str, Any] = {
        "prompts": str(cfg.prompts),
        "checkpoint": str(trained.path),
        "hardware": measured_on(grid.device, load.share),
        "model": facts,
        "new_tokens": new_tokens,
        "stop_at_end": settings.stop_at_end,
        "sampling": dataclasses.asdict(grid.sampling),
        "batch": batch,
        "repetitions": settings.repetitions,
        "rows": prompt_rows(contenders, rounds),
    }
    if settings.tables:
        rows = [row for of_category in by_category.values() for row in of_category]
        written = [text for one in rounds if one.repetition == 0 for text in one.runs[0].texts]
        counts_V = torch.zeros(0)
        with contextlib.suppress(ConfigError):  # a model without a run has no corpus
            counts_V = corpus_for(cfg, trained).unigram_counts()
        how = {"dtype": grid.dtypes[0], "use_kernels": settings.kernels, "draft_dtype": grid.draft_dtypes[0]}
        costs = cost_tables(contenders[0].decoder, statistics.median_high(map(len, rows)) + new_tokens // 2, **how)
        document["tables"] = costs | text_tables(model, rows, written, max(settings.num_recycled), counts_V)
    write_json(folder / "prompts.json", document)
    _print(document, settings)
    return document


def _evenly(prompts: list[Prompt], num: int | None) -> list[Prompt]:
    """`num` of them: the first of every category, then the second of every one, ...; in the order of the file."""
    if num is None:
        return prompts
    seen: dict[str, int] = defaultdict(int)
    places = []
    for number, prompt in enumerate(prompts):
        places.append((seen[prompt.category], number))
        seen[prompt.category] += 1
    return [prompts[number] for number in sorted(number for _, number in sorted(places)[:num])]


def _contenders(grid: Grid, trained: LoadedModel, settings: GridSettings) -> list[Contender]:
    """In every dtype autoregressive decoding, then all that draft; drafters without a module in one draft dtype."""
    contenders = []
    strategies = settings.decoders(trained.model.recyclable is not None)
    for dtype, draft_dtype in itertools.product(grid.dtypes, grid.draft_dtypes):
        decoder, of_all = grid.decoder(trained.model, dtype, draft_dtype, settings.compile[0], release=False)
        contenders += [
            Contender(decoder, strategy, of_all)
            for strategy in [Autoregressive(), *strategies]
            if strategy.needs_module or draft_dtype == grid.draft_dtypes[0]
        ]
    return contenders


def _print(document: dict[str, Any], settings: GridSettings) -> None:
    sampling = document["sampling"]
    ends = "ending at end tokens" if document["stop_at_end"] else "end tokens ignored"
    notes = [
        f"{document['model']['num_parameters']:,} parameters",
        f"at most {document['new_tokens']} new tokens a prompt, {ends}; {document['batch']} prompts at a time",
        f"temperature {sampling['temperature']:g}" if sampling["temperature"] else "greedy",
        f"median of {settings.repetitions} interleaved repetitions after a warm-up",
        "mean accepted length: tokens per backbone pass; equal: share of texts that equal the autoregressive one",
    ]
    print_rows(document["rows"], document["hardware"], notes)
    if settings.tables:
        print_tables(document["tables"])
