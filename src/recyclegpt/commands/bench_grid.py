"""Speed of the decoders over a grid, from a shape or a checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from recyclegpt.benchmark import SimulatedAcceptance, bytes_ratio, step_breakdown
from recyclegpt.benchmark.grid import BenchConfig, Row, bench
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.bench_output import print_grid, print_progress
from recyclegpt.configuration.corpus import corpus_for
from recyclegpt.configuration.device import choose_device
from recyclegpt.configuration.instantiate import build_all
from recyclegpt.configuration.pretrained import is_pretrained
from recyclegpt.configuration.schemas import not_positive, to_dataclass
from recyclegpt.decoding import Decoder, make_strategy
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.hardware.contention import ExternalCpuLoad
from recyclegpt.hardware.device import measured_on
from recyclegpt.models import RecycleGPT, named_dtype
from recyclegpt.models.parameter_count import model_facts

log = logging.getLogger("recyclegpt")
SIMULATED = [0.7, 1.0]
"""Acceptance rates at which random weights are measured: their own means nothing."""
Prompts = Callable[[int, int], list[list[int]]]
"""Gives (number, length) prompts."""


@dataclass
class GridSettings:
    """The section `bench`; conf/bench/grid.yaml says what each means."""

    strategies: list[str]
    num_recycled: list[int]
    batch: list[int]
    prompt_tokens: list[int]
    new_tokens: list[int]
    recycle_num_layers: list[int] | None
    dtype: list[str]
    compile: list[bool]
    kernels: bool
    acceptance: list[float] | None
    baselines: list[str]
    num_prompts: int
    repetitions: int
    breakdown: bool
    vocab_size: int

    def __post_init__(self) -> None:
        counts = ("batch", "prompt_tokens", "recycle_num_layers", "num_prompts", "repetitions", "vocab_size")
        problems = Problems(not_positive(self, *counts))
        problems.found += [
            f"{name}: the list is empty; give at least one value"
            for name, value in vars(self).items()
            if value == [] and name != "baselines"
        ]
        for name, num_recycled in itertools.product(self.strategies, self.num_recycled):
            with problems.under():
                make_strategy(name, num_recycled)
        least = max(self.num_recycled, default=0) + 2  # prefill and one step write as many
        refused: list[tuple[str, Iterable[object], str]] = [
            ("acceptance", (rate for rate in self.acceptance or [] if not 0 <= rate <= 1), "not between 0 and 1"),
            (
                "baselines",
                (name for name in self.baselines if name != "transformers"),
                "unknown; there is transformers",
            ),
            ("new_tokens", (n for n in self.new_tokens if n < least), f"too few to be timed; give {least} or more"),
        ]
        problems.found += [f"{name}: {value!r} is {why}" for name, values, why in refused for value in values]
        problems.raise_any()


class Grid(NamedTuple):
    """What is measured, and where."""

    settings: GridSettings
    device: torch.device
    dtypes: list[torch.dtype]
    compiles: list[bool]


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
    problems.raise_any()
    with problems.under("bench."):
        dtypes = [named_dtype(name, device, decoding=True) for name in settings.dtype]
    problems.raise_any()
    return Grid(settings, device, list(dict.fromkeys(dtypes)), list(dict.fromkeys(settings.compile)))


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
    depths: list[int] | list[None] = settings.recycle_num_layers or [None]
    with ExternalCpuLoad() as load:
        for depth, dtype, compiled in itertools.product(depths, grid.dtypes, grid.compiles):
            found, facts = _measure_model(cfg, grid, checkpoint, depth, dtype, compiled, with_breakdown=not rows)
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
    }
    print_grid(document, settings.repetitions)
    return document


def _measure_model(
    cfg: DictConfig, grid: Grid, checkpoint: str | None, depth: int | None, dtype: torch.dtype, compiled: bool,
    with_breakdown: bool,
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
        baselines = []
    shared = {field.name for field in dataclasses.fields(BenchConfig)} & {*vars(settings)}
    given = {name: getattr(settings, name) for name in shared} | {"baselines": baselines, "seed": cfg.seed}
    if checkpoint is None and settings.acceptance is None:
        given["acceptance"] = SIMULATED
    config = BenchConfig(**given, dtype_name=str(dtype).removeprefix("torch."))
    facts = model_facts(model)
    decoder = Decoder.optimised(model, dtype, compiled, settings.kernels, release=not baselines)
    rows = []
    for group in bench(decoder, config, prompts, model if baselines else None):
        rows += group
        print_progress(group)
    breakdown = _breakdown(decoder, config, prompts) if with_breakdown and settings.breakdown else {}
    return rows, {"model": facts, "bytes_ratio": bytes_ratio(decoder.model), "breakdown": breakdown}


def _trained(cfg: DictConfig, grid: Grid, dtype: torch.dtype, checkpoint: str) -> tuple[RecycleGPT, Prompts]:
    trained = load_trained(checkpoint, grid.device)
    datamodule = corpus_for(cfg, trained)
    model = trained.model.to(torch.float32 if dtype == torch.int8 else dtype)
    return model, lambda num, length: datamodule.val_prompts(num, length).tolist()


def _random_weights(cfg: DictConfig, grid: Grid, dtype: torch.dtype, depth: int | None) -> tuple[RecycleGPT, Prompts]:
    pretrained = is_pretrained(cfg.model)
    # No training rows here: texts may be as long as the checkpoint allows.
    given = {"context_length": None} if pretrained else {"vocab_size": grid.settings.vocab_size}
    built = build_all(cfg, ["model", "recycle"], {"model": given})
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
    """The parts of a step, of the first combination of every decoder asked for."""
    rows, m = prompts(config.batch[0], config.prompt_tokens[0]), config.num_recycled[0]
    names = ["autoregressive"] if decoder.model.recyclable is None else ["autoregressive", *config.strategies]
    seconds = {}
    for name in dict.fromkeys(names):
        strategy = make_strategy(name, m)
        if name == "verified" and config.acceptance:
            strategy = SimulatedAcceptance(m, probability=config.acceptance[-1])
        seconds[name] = step_breakdown(decoder, rows, strategy, config.new_tokens[0])
    return seconds
