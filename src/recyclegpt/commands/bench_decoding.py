"""Speed of the decoders over a grid, from a shape or a checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig

from recyclegpt.benchmark import SimulatedAcceptance, bytes_ratio, step_breakdown
from recyclegpt.benchmark.grid import BenchConfig, Row, bench
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.bench_table import print_progress, print_tables
from recyclegpt.configuration.corpus import corpus_for
from recyclegpt.configuration.device import choose_device
from recyclegpt.configuration.instantiate import build_all
from recyclegpt.configuration.pretrained import is_pretrained
from recyclegpt.configuration.schemas import BENCH, many, type_problems
from recyclegpt.decoding import Decoder, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.hardware.contention import ExternalCpuLoad
from recyclegpt.hardware.description import measured_on
from recyclegpt.models import RecycleGPT, named_dtype
from recyclegpt.models.parameter_count import model_facts

log = logging.getLogger("recyclegpt")

COUNTS = ("prompt_tokens", "new_tokens", "batch", "num_recycled", "num_prompts", "repetitions", "vocab_size")


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Measure one checkpoint or shape, and print its table.

    Returns:
        The document that `bench.json` holds.
    """
    device, configs = read_settings(cfg)
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    stages: dict[str, dict[str, float]] = {}
    with ExternalCpuLoad() as load:
        for config, decoder, plain, prompts, made in _models(cfg, device, configs):
            for group in bench(decoder, config, prompts, plain):
                rows += group
                print_progress(group)
            if not facts:
                facts = made | {"bytes_ratio": bytes_ratio(decoder.model)}
                if cfg.bench.stages:
                    stages = _stages(decoder, config, prompts)
    document = _document(device, facts, rows, stages, load.share)
    print_tables(document, cfg.bench.repetitions, trained=cfg.checkpoint is not None)
    return document


def read_settings(cfg: DictConfig) -> tuple[torch.device, list[BenchConfig]]:
    """Device and one grid for each number format, after a look at every setting.

    Raises:
        ConfigError: naming all that cannot be measured.
    """
    given = cfg.bench
    wrong = type_problems(given, BENCH, "bench.") + type_problems(
        cfg, {"device": str, "seed": int, "prompts": str | None}
    )
    if wrong:
        raise ConfigError(wrong)
    depths = [] if given.recycle_num_layers is None else many(given.recycle_num_layers)
    shares = None if given.acceptance is None else many(given.acceptance)
    problems = [
        f"bench.{key}: {value} is not a positive whole number"
        for key, values in (*((key, many(given[key])) for key in COUNTS), ("recycle_num_layers", depths))
        for value in values
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]
    problems += [
        f"bench.acceptance: {share} is not between 0 and 1"
        for share in shares or []
        if not isinstance(share, (int, float)) or not 0 <= share <= 1
    ]
    problems += [
        f"bench.compile: {value!r} is neither true, false nor auto"
        for value in many(given.compile)
        if not isinstance(value, bool) and value != "auto"
    ]
    problems += [
        f"bench.baselines: {name!r} is unknown; there is transformers"
        for name in many(given.baselines)
        if name != "transformers"
    ]
    if depths and cfg.checkpoint is not None:
        problems.append("bench.recycle_num_layers: a checkpoint has one depth, its own; leave it out")
    device = torch.device("cpu")
    dtypes = []
    for name in many(given.dtype):
        device, dtype = choose_device(cfg.device, str(name), problems, "bench.dtype", decoding=True)
        dtypes.append(str(dtype).removeprefix("torch."))
    for name, num_recycled in itertools.product(many(given.strategies), many(given.num_recycled)):
        try:
            make_strategy(name, num_recycled)
        except ConfigError as error:
            problems += [f"bench.{problem.replace('strategy:', 'strategies:', 1)}" for problem in error.problems]
    shortest = max(many(given.num_recycled)) + 2
    problems += [
        f"bench.new_tokens: {value} are written by the prompt's pass and one cycle when bench.num_recycled="
        f"{shortest - 2}, so nothing is left to time; give {shortest} or more"
        for value in many(given.new_tokens)
        if value < shortest
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    if cfg.checkpoint is None and shares is None:
        shares = [0.7, 1.0]
    return device, [
        BenchConfig(
            strategies=many(given.strategies),
            num_recycled=many(given.num_recycled),
            batch=many(given.batch),
            prompt_tokens=many(given.prompt_tokens),
            new_tokens=many(given.new_tokens),
            acceptance=shares,
            num_prompts=given.num_prompts,
            repetitions=given.repetitions,
            baselines=many(given.baselines),
            seed=cfg.seed,
            dtype_name=dtype,
        )
        for dtype in dict.fromkeys(dtypes)
    ]


Prompts = Callable[[int, int], list[list[int]]]


def _models(
    cfg: DictConfig, device: torch.device, configs: list[BenchConfig]
) -> Iterator[tuple[BenchConfig, Decoder, RecycleGPT | None, Prompts, dict[str, Any]]]:
    """Every depth, number format and way to compile, one after another, so that one model lies in memory at a time."""
    depths = [None] if cfg.bench.recycle_num_layers is None else many(cfg.bench.recycle_num_layers)
    asked = [(config, compiled) for config in configs for compiled in compiles(cfg, device)]
    for depth, (config, compiled) in itertools.product(depths, asked):
        dtype = named_dtype(config.dtype_name, device, decoding=True)
        model, prompts = model_and_prompts(cfg, device, dtype, depth)
        context = model.config.context_length
        wanted = max(config.prompt_tokens) + max(config.new_tokens)
        if wanted > context:
            fixed = cfg.checkpoint is not None or is_pretrained(cfg.model)
            raise ConfigError(
                f"bench: prompt_tokens + new_tokens = {wanted} exceed the context of {context}; lower them"
                + ("" if fixed else " or raise model.context_length")
            )
        keep = bool(config.baselines) and config.dtype_name != "int8"
        if config.baselines and not keep:
            log.warning("transformers has no int8 weights of this kind, so it is not measured beside dtype int8")
            config = dataclasses.replace(config, baselines=())
        facts = model_facts(model)
        decoder = Decoder.optimised(model, dtype, compiled, cfg.bench.kernels, release=not keep)
        yield config, decoder, model if keep else None, prompts, facts


def compiles(cfg: DictConfig, device: torch.device) -> list[bool]:
    """The values of `bench.compile`, each once; auto: on CUDA."""
    auto = device.type == "cuda"
    return list(dict.fromkeys(auto if value == "auto" else bool(value) for value in many(cfg.bench.compile)))


def model_and_prompts(
    cfg: DictConfig, device: torch.device, dtype: torch.dtype, depth: int | None
) -> tuple[RecycleGPT, Prompts]:
    state_dtype = torch.float32 if dtype == torch.int8 else dtype
    if cfg.checkpoint is not None:
        trained = load_trained(cfg.checkpoint, device)
        datamodule = corpus_for(cfg, trained)
        return trained.model.to(state_dtype), lambda num, length: datamodule.val_prompts(num, length).tolist()
    pretrained = is_pretrained(cfg.model)
    # No training rows here: texts may be as long as the checkpoint allows.
    given = {"context_length": None} if pretrained else {"vocab_size": cfg.bench.vocab_size}
    built = build_all(cfg, ["model", "recycle"], {"model": given})
    recycle = built["recycle"] if depth is None else dataclasses.replace(built["recycle"], num_layers=depth)
    torch.manual_seed(cfg.seed)
    default = torch.get_default_dtype()
    # Made in the format it is measured in: a large shape would not fit in fp32 first.
    torch.set_default_dtype(state_dtype)
    try:
        with device:
            model = built["model"].load(recycle, device) if pretrained else RecycleGPT(built["model"], recycle).eval()
    finally:
        torch.set_default_dtype(default)
    model.to(state_dtype)
    model.rotary.float().fill()
    generator = torch.Generator().manual_seed(cfg.seed)
    vocab_size = model.config.vocab_size
    return model, lambda num, length: torch.randint(vocab_size, (num, length), generator=generator).tolist()


def _stages(decoder: Decoder, config: BenchConfig, prompts: Prompts) -> dict[str, dict[str, float]]:
    """A cycle's parts, of the first combination of every decoder asked for."""
    batch, length, new_tokens = config.batch[0], config.prompt_tokens[0], config.new_tokens[0]
    rows, m = prompts(batch, length), config.num_recycled[0]
    names = dict.fromkeys(["autoregressive", *config.strategies])
    if decoder.model.recyclable is None:
        names = {"autoregressive": None}
    strategies = {
        name: SimulatedAcceptance(m, probability=config.acceptance[-1])
        if name == "verified" and config.acceptance
        else make_strategy(name, m)
        for name in names
    }
    return {
        name: step_breakdown(decoder, rows, strategy, new_tokens, config.sampling)
        for name, strategy in strategies.items()
    }


def _document(
    device: torch.device,
    facts: dict[str, Any],
    rows: list[Row],
    stages: dict[str, dict[str, float]],
    others_cpu: float | None,
) -> dict[str, Any]:
    first = next((row for row in rows if row["verify_cost"] is not None), rows[0])
    return {
        "hardware": {
            **measured_on(device, others_cpu),
            "copy_bytes_per_s": statistics.median(row["copy_bytes_per_s"] for row in rows if "copy_bytes_per_s" in row),
        },
        "model": {key: value for key, value in facts.items() if key != "bytes_ratio"},
        "costs": {
            "verify_cost": first["verify_cost"],
            "draft_cost": first["draft_cost"],
            "bytes_ratio": facts["bytes_ratio"],
        },
        "rows": rows,
        "stages": stages,
    }
