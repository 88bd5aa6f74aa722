"""Speed of the decoders over a grid, from a shape or a checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from recyclegpt.benchmark import bytes_ratio, step_breakdown
from recyclegpt.benchmark.grid import BenchConfig, Row, bench
from recyclegpt.benchmark.tables import PARTS, cost_tables
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.bench_table import COLUMNS, SHAPE, print_rows, print_tables
from recyclegpt.configuration.build import build, not_positive, to_dataclass
from recyclegpt.configuration.command_settings import choose_device, corpus_for
from recyclegpt.configuration.compose import to_plain
from recyclegpt.configuration.train_checks import is_pretrained
from recyclegpt.console import print_table
from recyclegpt.decoding import Decoder, DecodingConfig, SamplingConfig, make_strategy
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.hardware.device import ExternalCpuLoad, measured_on
from recyclegpt.models import RecycleGPT, named_dtype
from recyclegpt.models.parameter_count import model_facts

log = logging.getLogger("recyclegpt")
SIMULATED = (0.7,)
"""Acceptance rates at which random weights are measured: their own means nothing."""
Prompts = Callable[[int, int], list[list[int]]]
"""Gives (number, length) prompts."""


@dataclass(frozen=True)
class GridSettings(BenchConfig):
    """The section `bench`: what is measured, over which models and number formats."""

    recycle_num_layers: tuple[int, ...] | None = None
    dtype: tuple[str, ...] = ("auto",)
    compile: tuple[bool, ...] = (False,)
    kernels: bool = True
    stop_at_end: bool = False
    breakdown: bool = True
    tables: bool = False
    vocab_size: int = 32000

    def __post_init__(self) -> None:
        counts = ("batch", "prompt_tokens", "recycle_num_layers", "num_prompts", "repetitions", "vocab_size")
        problems = Problems(not_positive(self, *counts))
        problems.found += [
            f"{name}: the list is empty; give at least one value"
            for name, value in vars(self).items()
            if value in ((), []) and name != "baselines"
        ]
        checks = [partial(make_strategy, *one) for one in itertools.product(self.strategies, self.num_recycled)]
        checks += [partial(make_strategy, "verified", drafter=drafter) for drafter in self.drafters]
        for check in checks:
            with problems.under():
                check()
        for one, many in (("strategy:", "strategies:"), ("drafter:", "drafters:")):
            problems.found = [re.sub(f"^{one}", many, problem) for problem in dict.fromkeys(problems.found)]
        least = max(self.num_recycled, default=0) + 2  # prefill and one step write as many
        problems.found += [
            f"acceptance_by_position: {p} is not between 0 and 1"
            for p in self.acceptance_by_position or ()
            if not 0 <= p <= 1
        ]
        problems.found += [
            f"baselines: {name!r} is unknown; there is transformers" for name in {*self.baselines} - {"transformers"}
        ]
        if min(self.new_tokens, default=least) < least:
            problems.found.append(f"new_tokens: {min(self.new_tokens)} are too few to be timed; give {least} or more")
        problems.raise_any()


class Grid(NamedTuple):
    settings: GridSettings
    device: torch.device
    dtypes: list[torch.dtype]
    draft_dtypes: list[torch.dtype | None]
    sampling: SamplingConfig

    def decoder(
        self, model: RecycleGPT, dtype: torch.dtype, draft_dtype: torch.dtype | None, compiled: bool, release: bool
    ) -> tuple[Decoder, Row]:
        """A decoder of this model, and what all its rows say."""
        decoder = Decoder.optimised(model, dtype, compiled, self.settings.kernels, release, draft_dtype)
        dtypes = [kind and str(kind).removeprefix("torch.") for kind in (dtype, draft_dtype)]
        return decoder, {
            "recycle_num_layers": model.recycle_config.num_layers,
            "draft_vocab": model.recycle_config.draft_vocab,
            "draft_dtype": dtypes[1],
            "dtype": dtypes[0],
            "compile": decoder.compiled,
        }


def read_grid(cfg: DictConfig) -> Grid:
    """Look at every setting.

    Raises:
        ConfigError: naming all that cannot be measured.
    """
    problems = Problems()
    with problems.under():
        device = choose_device(cfg.device)
    with problems.under():
        settings = to_dataclass(GridSettings, cfg.bench, "bench")
    given = to_plain(cfg.decoding)
    names = given.pop("draft_dtype")
    with problems.under("decoding."):
        kinds = [DecodingConfig(draft_dtype=name, **given) for name in (names if isinstance(names, list) else [names])]
    problems.raise_any()
    with problems.under("bench."):
        dtypes = [named_dtype(name, device, decoding=True) for name in settings.dtype]
    problems.raise_any()
    draft_dtypes = list(dict.fromkeys(kind.named_draft_dtype() for kind in kinds))
    return Grid(settings, device, list(dict.fromkeys(dtypes)), draft_dtypes, kinds[0].sampling())


def measure_grid(cfg: DictConfig, grid: Grid, checkpoint: str | None) -> dict[str, Any]:
    """Measure one checkpoint, or without one the shape of `cfg.model` and `cfg.recycle`, and print its table.

    Returns:
        The document that `bench.json` holds.
    """
    settings = grid.settings
    if checkpoint is not None and settings.recycle_num_layers:
        raise ConfigError("bench.recycle_num_layers: a checkpoint has its own depth; leave it out")
    rows: list[Row] = []
    first: dict[str, Any] = {}
    depths: tuple[int, ...] | tuple[None] = settings.recycle_num_layers or (None,)
    with ExternalCpuLoad() as load:
        for kind in itertools.product(depths, grid.dtypes, grid.draft_dtypes, dict.fromkeys(settings.compile)):
            found, facts = _measure_model(cfg, grid, checkpoint, not rows, *kind)
            rows += found
            first = first or facts
    costs = next((row for row in rows if row["verify_cost"] is not None), rows[0])
    copies = statistics.median(row["copy_bytes_per_s"] for row in rows if "copy_bytes_per_s" in row)
    document = {
        "hardware": {**measured_on(grid.device, load.share), "copy_bytes_per_s": copies},
        "model": first["model"],
        "costs": {name: costs[name] for name in ("verify_cost", "draft_cost")} | {"bytes_ratio": first["bytes_ratio"]},
        "rows": rows,
        "breakdown": first["breakdown"],
        "tables": first["tables"],
    }
    _print(document, settings.repetitions)
    return document


def _measure_model(
    cfg: DictConfig, grid: Grid, checkpoint: str | None, is_first: bool, depth: int | None,
    dtype: torch.dtype, draft_dtype: torch.dtype | None, compiled: bool,
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """One depth, number format and way to compile, so that memory holds one model at a time."""
    settings = grid.settings
    if checkpoint is None:
        model, prompts = _random_weights(cfg, grid, dtype, depth)
    else:
        model, prompts = _trained(cfg, grid, dtype, checkpoint)
    wanted, context = max(settings.prompt_tokens) + max(settings.new_tokens), model.config.context_length
    if wanted > context:
        raise ConfigError(f"bench: prompt_tokens + new_tokens = {wanted} exceed the context of {context}; lower them")
    baselines = settings.baselines
    if baselines and dtype == torch.int8:
        log.warning("transformers has no int8 weights of this kind, so it is not measured in dtype int8")
        baselines = ()
    given = settings.acceptance_by_position or (SIMULATED if checkpoint is None else None)
    config = dataclasses.replace(settings, baselines=baselines, acceptance_by_position=given, seed=cfg.seed)
    facts = model_facts(model)
    decoder, of_all = grid.decoder(model, dtype, draft_dtype, compiled, release=not baselines)
    rows = []
    for group in bench(decoder, config, prompts, model if baselines else None, grid.sampling):
        rows += [of_all | row for row in group]
        shape = ", ".join(f"{COLUMNS[key]} {rows[-1][key]}" for key in SHAPE)  # a line a group: a grid may take long
        print(shape, *(f"{row['strategy']} {row['speedup']:.2f}x" for row in group), sep="; ", file=sys.stderr)
    once: dict[str, Any] = {"model": facts, "bytes_ratio": bytes_ratio(decoder.model), "breakdown": {}, "tables": None}
    if is_first and settings.breakdown:
        once["breakdown"] = _breakdown(decoder, config, prompts)
    if is_first and settings.tables:
        how = {"dtype": dtype, "use_kernels": settings.kernels, "draft_dtype": draft_dtype}
        once["tables"] = cost_tables(decoder, settings.prompt_tokens[0] + settings.new_tokens[0] // 2, **how)
    return rows, once


def _trained(cfg: DictConfig, grid: Grid, dtype: torch.dtype, checkpoint: str) -> tuple[RecycleGPT, Prompts]:
    trained = load_trained(checkpoint, grid.device, cfg.get("module"))
    datamodule = corpus_for(cfg, trained)
    model = trained.model.to(torch.float32 if dtype == torch.int8 else dtype)
    return model, lambda num, length: datamodule.val_prompts(num, length).tolist()


def _random_weights(cfg: DictConfig, grid: Grid, dtype: torch.dtype, depth: int | None) -> tuple[RecycleGPT, Prompts]:
    pretrained = is_pretrained(cfg.model)
    # No training rows here: texts may be as long as the checkpoint allows.
    given = {"context_length": None} if pretrained else {"vocab_size": grid.settings.vocab_size}
    plain = to_plain(cfg)
    built = build({"model": plain["model"] | given, "recycle": plain["recycle"]})
    recycle = built["recycle"] if depth is None else dataclasses.replace(built["recycle"], num_layers=depth)
    torch.manual_seed(cfg.seed)
    default, state_dtype = torch.get_default_dtype(), torch.float32 if dtype == torch.int8 else dtype
    # Made in the format it is measured in: a large shape would not fit in fp32 first.
    torch.set_default_dtype(state_dtype)
    try:
        with grid.device:
            if pretrained:
                model = built["model"].load(recycle, grid.device)
            else:
                model = RecycleGPT(built["model"], recycle).eval()
    finally:
        torch.set_default_dtype(default)
    model.to(state_dtype)
    model.rotary.float().fill()
    generator = torch.Generator().manual_seed(cfg.seed)
    vocab_size = model.config.vocab_size
    return model, lambda num, length: torch.randint(vocab_size, (num, length), generator=generator).tolist()


def _breakdown(decoder: Decoder, config: BenchConfig, prompts: Prompts) -> dict[str, dict[str, float]]:
    rows, m = prompts(config.batch[0], config.prompt_tokens[0]), config.num_recycled[0]
    names = ["autoregressive"] if decoder.model.recyclable is None else ["autoregressive", *config.strategies]
    strategies = {name: config.simulated(make_strategy(name, m)) for name in names}
    return {name: step_breakdown(decoder, rows, it, config.new_tokens[0]) for name, it in strategies.items()}


def _print(document: dict[str, Any], repetitions: int) -> None:
    """The document of a bench: a row a measurement, and where the time of a step goes."""
    rows, hardware = document["rows"], document["hardware"]
    facts = [
        f"{document['model']['num_parameters']:,} parameters",
        f"median of {repetitions} interleaved repetitions after a warm-up",
        f"bandwidth: share of the {hardware['copy_bytes_per_s'] / 1e9:.1f} GB/s that a copy moves on this device",
    ]
    if any(row.get("acceptance_given") for row in rows):
        facts.append("verified: every pass is computed, then the given share of the drafted tokens is accepted")
    print_rows([row | {"spread": None, "speedup_spread": None} for row in rows], hardware, facts)
    if document["breakdown"]:
        print()
        print_table(
            [(name, *(seconds[part] * 1e3 for part in PARTS)) for name, seconds in document["breakdown"].items()],
            header=("ms of a step", *PARTS),
        )
    if document["tables"]:
        print_tables(document["tables"])
