"""`recyclegpt bench prompts=FILE.jsonl checkpoint=...`: the decoders on a set of prompts, category by category."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm.auto import tqdm

from recyclegpt.benchmark.prompt_set import Row, bench_prompts, fit_prompts
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.bench_grid import Grid
from recyclegpt.configuration.schemas import read_settings
from recyclegpt.console import print_table
from recyclegpt.data.prompt_file import PromptSettings, encode_prompts, read_prompts
from recyclegpt.decoding import Decoder
from recyclegpt.errors import ConfigError
from recyclegpt.files import write_json
from recyclegpt.hardware.contention import ExternalCpuLoad
from recyclegpt.hardware.device import measured_on, warn_contended
from recyclegpt.models.parameter_count import model_facts

COLUMNS = {
    "category": "category", "strategy": "strategy", "drafter": "drafter", "num_recycled": "m", "num_prompts": "prompts",
    "tokens_per_s": "tokens/s", "spread": "from-to", "speedup": "speedup", "speedup_spread": "from-to",
    "mean_accepted_length": "mean accepted length", "acceptance": "acceptance", "agreement": "agreement",
    "equal": "equal",
}  # fmt: skip


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
    reading, found = read_settings(PromptSettings, cfg), read_prompts(cfg.prompts)
    trained = load_trained(cfg.checkpoint, grid.device)
    model, tokenizer = trained.model, trained.tokenizer
    strategies = settings.decoders(model.recyclable is not None)
    if not strategies:
        raise ConfigError(
            "checkpoint: the model has no recyclable module, so there is no decoder to compare; give "
            "bench.drafters=[ngram], or train a module with `recyclegpt adapt` or `recyclegpt train`"
        )
    (new_tokens,), (dtype,), (compiled,) = settings.new_tokens, grid.dtypes, settings.compile
    rows = encode_prompts(tokenizer, found, reading)
    rows = fit_prompts(rows, model.config.context_length, new_tokens, tokenizer.eos_id)
    by_category: dict[str, list[list[int]]] = defaultdict(list)
    for prompt, row in zip(found, rows, strict=True):
        by_category[prompt.category].append(row)
    facts = model_facts(model)
    decoder = Decoder.optimised(model, dtype, compiled, settings.kernels, True, grid.draft_dtype)
    document: dict[str, Any] = {
        "prompts": str(cfg.prompts),
        "checkpoint": str(trained.path),
        "hardware": None,
        "model": facts,
        "dtype": str(dtype).removeprefix("torch."),
        "compile": decoder.compiled,
        "new_tokens": new_tokens,
        "repetitions": settings.repetitions,
        "complete": False,
    }
    total = len(found) * settings.repetitions
    with ExternalCpuLoad() as load, tqdm(desc="decoding", unit=" prompts", total=total, mininterval=1) as bar:

        def keep(measured: list[Row]) -> None:
            write_json(folder / "prompts.json", {**document, "rows": measured})
            bar.update()

        document["rows"] = bench_prompts(decoder, by_category, strategies, new_tokens, settings.repetitions, keep)
    document |= {"hardware": measured_on(grid.device, load.share), "complete": True}
    write_json(folder / "prompts.json", document)
    _print(document)
    return document


def _print(document: dict[str, Any]) -> None:
    hardware = document["hardware"]
    spreads = ("spread", "speedup_spread")
    cells = [row | {key: "{:.3g}-{:.3g}".format(*row[key]) for key in spreads} for row in document["rows"]]
    print_table([[row[key] for key in COLUMNS] for row in cells], header=list(COLUMNS.values()))
    print(
        f"\n{document['model']['num_parameters']:,} parameters on {hardware['device']}, {hardware['threads']} threads, "
        f"{document['dtype']}; {document['new_tokens']} new tokens a prompt, one prompt at a time, greedy; median of "
        f"{document['repetitions']} interleaved repetitions after a warm-up\n"
        "mean accepted length: tokens per backbone pass; equal: share of texts that equal the autoregressive one"
    )
    warn_contended(hardware)
