"""Speed of the decoders over a grid, from a shape or a checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import statistics
from collections.abc import Callable, Iterator
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
from recyclegpt.configuration.schemas import not_positive, read_settings
from recyclegpt.decoding import Decoder, make_strategy
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.hardware.contention import ExternalCpuLoad
from recyclegpt.hardware.device import measured_on
from recyclegpt.models import RecycleGPT, named_dtype
from recyclegpt.models.parameter_count import model_facts

log = logging.getLogger("recyclegpt")
SIMULATED = (0.7, 1.0)
"""Acceptance rates at which random weights are measured: their own means nothing."""
COMPILES = ("true", "false", "auto")
Prompts = Callable[[int, int], list[list[int]]]
"""Gives (number, length) prompts."""


@dataclass
class GridSettings:
    """The section `bench`; conf/bench/grid.yaml says what each means.

    Raises:
        ConfigError: naming every value that cannot be measured.
    """

    strategies: list[str]
    num_recycled: list[int]
    batch: list[int]
    prompt_tokens: list[int]
    new_tokens: list[int]
    recycle_num_layers: list[int] | None
    dtype: list[str]
    compile: list[str]
    kernels: bool
    acceptance: list[float] | None
    baselines: list[str]
    num_prompts: int
    repetitions: int
    breakdown: bool
    vocab_size: int

    def __post_init__(self) -> None:
        counts = ["num_recycled", "batch", "prompt_tokens", "new_tokens", "num_prompts", "repetitions", "vocab_size"]
        problems = Problems(not_positive(self, *counts, *(["recycle_num_layers"] * bool(self.recycle_num_layers))))
        problems.found += [
            f"{name}: the list is empty; give at least one value"
            for name in ("strategies", "dtype", "compile")
            if not getattr(self, name)
        ]
        for name, num_recycled in itertools.product(self.strategies, self.num_recycled):
            with problems.under():
                make_strategy(name, num_recycled)
        problems.found += [
            f"acceptance: {rate} is not between 0 and 1" for rate in self.acceptance or [] if not 0 <= rate <= 1
        ]
        problems.found += [
            f"compile: {value!r} is neither true, false nor auto"
            for value in self.compile
            if value.lower() not in COMPILES
        ]
        unknown = set(self.baselines) - {"transformers"}
        problems.found += [f"baselines: {name!r} is unknown; there is transformers" for name in sorted(unknown)]
        least = max(self.num_recycled, default=0) + 2
        problems.found += [
            f"new_tokens: {value} are written by prefill and one step when num_recycled is {least - 2}, so nothing is "
            f"left to time; give {least} or more"
            for value in self.new_tokens
            if value < least
        ]
        problems.raise_any()


class Grid(NamedTuple):
    """What a config asks to be measured."""

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
    device, settings = torch.device("cpu"), None
    with problems.under():
        device = choose_device(cfg.device)
    with problems.under():
        settings = read_settings(GridSettings, cfg.bench, "bench")
    dtypes = []
    for name in settings.dtype if settings is not None else []:
        with problems.under("bench."):
            dtypes.append(named_dtype(name, device, decoding=True))
    problems.raise_any()
    assert settings is not None
    compiles = [device.type == "cuda" if value == "auto" else value.lower() == "true" for value in settings.compile]
    return Grid(settings, device, list(dict.fromkeys(dtypes)), list(dict.fromkeys(compiles)))


def bench_config(grid: Grid, dtype: torch.dtype, seed: int, acceptance: list[float] | None) -> BenchConfig:
    """What is measured in one number format."""
    shared = {field.name for field in dataclasses.fields(BenchConfig)} & {*vars(grid.settings)}
    given = {name: getattr(grid.settings, name) for name in shared}
    return BenchConfig(
        **given | {"seed": seed, "acceptance": acceptance, "dtype_name": str(dtype).removeprefix("torch.")}
    )


def measure_grid(cfg: DictConfig, grid: Grid, checkpoint: str | None = None) -> dict[str, Any]:
    """Measure one checkpoint or shape, and print its table.

    Args:
        cfg: the composed config; `model` and `recycle` are needed only without a checkpoint.
        grid: what to measure.
        checkpoint: in place of `cfg.checkpoint`.

    Returns:
        The document that `bench.json` holds.
    """
    checkpoint = checkpoint or cfg.checkpoint
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    breakdown: dict[str, dict[str, float]] = {}
    with ExternalCpuLoad() as load:
        for config, decoder, plain, prompts, made in _models(cfg, grid, checkpoint):
            for group in bench(decoder, config, prompts, plain):
                rows += group
                print_progress(group)
            if not facts:
                facts = made | {"bytes_ratio": bytes_ratio(decoder.model)}
                if grid.settings.breakdown:
                    breakdown = _breakdown(decoder, config, prompts)
    first = next((row for row in rows if row["verify_cost"] is not None), rows[0])
    copies = statistics.median(row["copy_bytes_per_s"] for row in rows if "copy_bytes_per_s" in row)
    document = {
        "hardware": {**measured_on(grid.device, load.share), "copy_bytes_per_s": copies},
        "model": {key: value for key, value in facts.items() if key != "bytes_ratio"},
        "costs": {name: first[name] for name in ("verify_cost", "draft_cost")} | {"bytes_ratio": facts["bytes_ratio"]},
        "rows": rows,
        "breakdown": breakdown,
    }
    print_grid(document, grid.settings.repetitions, trained=checkpoint is not None)
    return document


def _models(
    cfg: DictConfig, grid: Grid, checkpoint: str | None
) -> Iterator[tuple[BenchConfig, Decoder, RecycleGPT | None, Prompts, dict[str, Any]]]:
    """Every depth, number format and way to compile, one after another, so that memory holds one model at a time."""
    settings = grid.settings
    if checkpoint is not None and settings.recycle_num_layers:
        raise ConfigError("bench.recycle_num_layers: a checkpoint has its own depth; leave it out")
    acceptance = list(SIMULATED) if checkpoint is None and settings.acceptance is None else settings.acceptance
    depths: list[int] | list[None] = settings.recycle_num_layers or [None]
    for depth, dtype, compiled in itertools.product(depths, grid.dtypes, grid.compiles):
        config = bench_config(grid, dtype, cfg.seed, acceptance)
        if checkpoint is None:
            model, prompts = _random_weights(cfg, grid, dtype, depth)
        else:
            model, prompts = _trained(cfg, grid, dtype, checkpoint)
        wanted, context = max(settings.prompt_tokens) + max(settings.new_tokens), model.config.context_length
        if wanted > context:
            fixed = checkpoint is not None or is_pretrained(cfg.model)
            raise ConfigError(
                f"bench: prompt_tokens + new_tokens = {wanted} exceed the context of {context}; lower them"
                + ("" if fixed else " or raise model.context_length")
            )
        keep = bool(config.baselines) and dtype != torch.int8
        if config.baselines and not keep:
            log.warning("transformers has no int8 weights of this kind, so it is not measured in dtype int8")
            config = dataclasses.replace(config, baselines=())
        facts = model_facts(model)
        decoder = Decoder.optimised(model, dtype, compiled, settings.kernels, release=not keep)
        yield config, decoder, model if keep else None, prompts, facts


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
    names = dict.fromkeys(["autoregressive", *config.strategies])
    if decoder.model.recyclable is None:
        names = {"autoregressive": None}
    seconds = {}
    for name in names:
        strategy = make_strategy(name, m)
        if name == "verified" and config.acceptance:
            strategy = SimulatedAcceptance(m, probability=config.acceptance[-1])
        seconds[name] = step_breakdown(decoder, rows, strategy, config.new_tokens[0], config.sampling)
    return seconds
