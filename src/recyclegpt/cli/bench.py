"""`recyclegpt bench`: how fast the decoders are, beside the speed that the cost of their passes allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from recyclegpt.callbacks.provenance import cpu_model
from recyclegpt.callbacks.throughput import device_name, peak_memory_bytes
from recyclegpt.cli.compose import compose_or_explain
from recyclegpt.cli.console import print_table
from recyclegpt.cli.generate import choose_device
from recyclegpt.cli.instantiate import build, build_all
from recyclegpt.cli.result import model_facts
from recyclegpt.data import TextDataModule
from recyclegpt.decoding import Autoregressive, Decoder, Strategy, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.evaluation import PassCosts, Speed, byte_ceiling, measure_pass_costs, measure_speed
from recyclegpt.models import RecycleGPT
from recyclegpt.training.checkpoint import load_trained

HELP = """usage: recyclegpt bench [KEY=VALUE ...]

Speed of the decoders at batch size 1. Settings: model=..., recycle=... (random weights: speed does not depend on them,
acceptance does) or checkpoint=RUN_FOLDER; bench.strategies, bench.num_recycled=[1,2], bench.prompt_tokens,
bench.new_tokens, bench.num_prompts, bench.repetitions, bench.dtype; device. The last line is one JSON document."""
COUNTS = ("prompt_tokens", "new_tokens", "num_prompts", "repetitions", "vocab_size")


def run(argv: Sequence[str]) -> int:
    """The command."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP)
        return 0
    cfg = compose_or_explain("bench", list(argv))
    problems = [
        f"bench.{key}: {cfg.bench[key]} is not a positive whole number"
        for key in COUNTS
        if not isinstance(cfg.bench[key], int) or cfg.bench[key] < 1
    ]
    device, dtype = choose_device(cfg.device, cfg.bench.dtype, problems, "bench.dtype")
    for name in cfg.bench.strategies:
        for num_recycled in cfg.bench.num_recycled:
            try:
                make_strategy(name, num_recycled)
            except ConfigError as error:
                problems += [f"bench.{problem}" for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    model, prompts = _model_and_prompts(cfg, device)
    model = model.to(dtype)
    context, wanted = model.config.context_length, cfg.bench.prompt_tokens + cfg.bench.new_tokens
    if wanted > context:
        raise ConfigError(
            f"bench: prompt_tokens + new_tokens = {wanted} exceed the context of {context}; lower them or raise "
            "model.context_length"
        )
    rows = [row for num_recycled in cfg.bench.num_recycled for row in _measure(cfg, model, prompts, num_recycled)]
    rows = [row for index, row in enumerate(rows) if index == 0 or row["strategy"] != "autoregressive"]
    print_table(
        [
            tuple(row[key] for key in ("strategy", "num_recycled", "tokens_per_s", "speedup", "acceptance"))
            + tuple(row[key] for key in ("ceiling_measured", "ceiling_bytes", "rho", "c"))
            for row in rows
        ],
        header=("strategy", "recycled", "tokens/s", "speedup", "kept", "ceiling", "by bytes", "rho", "c"),
    )
    hardware = {
        "device": cpu_model() if device.type == "cpu" else device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    bench = cfg.bench
    print(
        f"\n{model_facts(model)['num_parameters']:,} parameters in {rows[0]['dtype']} on {hardware['device']}, "
        f"{hardware['threads']} threads; {bench.num_prompts} prompts of {bench.prompt_tokens} tokens, "
        f"{bench.new_tokens} new ones, median of {bench.repetitions} interleaved rounds"
    )
    if cfg.checkpoint is None:
        print("random weights: the share of tokens kept means nothing, and verified speed is that of this share")
    first = next((row for row in rows if row["rho"] is not None), rows[0])
    costs = {key: first[key] for key in ("rho", "c")} | {"bytes_ratio": _bytes_ratio(model)}
    print(json.dumps({"hardware": hardware, "model": model_facts(model), "costs": costs, "rows": rows}))
    return 0


def _model_and_prompts(cfg: DictConfig, device: torch.device) -> tuple[RecycleGPT, list[list[int]]]:
    num, length = cfg.bench.num_prompts, cfg.bench.prompt_tokens
    if cfg.checkpoint is not None:
        trained = load_trained(cfg.checkpoint, device)
        datamodule: TextDataModule = build(trained.config["data"], "data")
        return trained.model, datamodule.val_prompts(num, length).tolist()
    built = build_all(cfg, ["model", "recycle"], {"model": {"vocab_size": cfg.bench.vocab_size}})
    torch.manual_seed(cfg.seed)
    with device:
        model = RecycleGPT(built["model"], built["recycle"]).eval()
    return model, torch.randint(model.config.vocab_size, (num, length)).tolist()


def _measure(cfg: DictConfig, model: RecycleGPT, prompts: list[list[int]], num_recycled: int) -> list[dict[str, Any]]:
    """The rows of one number of recycled tokens, the baseline's measured anew among them."""
    bench = cfg.bench
    others = [name for name in bench.strategies if name != "autoregressive" and model.recyclable is not None]
    strategies: list[Strategy] = [Autoregressive(), *(make_strategy(name, num_recycled) for name in others)]
    middle = bench.prompt_tokens + bench.new_tokens // 2
    costs = None if model.recyclable is None else measure_pass_costs(model, num_recycled, middle)
    speeds = measure_speed(
        Decoder(model), prompts, strategies, bench.new_tokens, repetitions=bench.repetitions, seed=cfg.seed
    )
    baseline = speeds["autoregressive"]
    return [_row(cfg, model, strategy, speeds[strategy.name], baseline, costs) for strategy in strategies]


def _row(
    cfg: DictConfig, model: RecycleGPT, strategy: Strategy, speed: Speed, baseline: Speed, costs: PassCosts | None
) -> dict[str, Any]:
    kept = speed.counts.acceptance if strategy.num_recycled else None
    share = 0.0 if kept is None else kept
    recycles = costs is not None and strategy.num_recycled > 0
    return {
        "strategy": strategy.name,
        "num_recycled": strategy.num_recycled,
        "batch": 1,
        "tokens_per_s": speed.tokens_per_s,
        "recycle_num_layers": model.recycle_config.num_layers,
        "prompt_tokens": cfg.bench.prompt_tokens,
        "new_tokens": cfg.bench.new_tokens,
        "dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        "compile": False,
        "rho": costs.rho if costs is not None and recycles else None,
        "c": costs.c if costs is not None and recycles else None,
        "spread": [min(speed.repetitions), max(speed.repetitions)],
        "speedup": speed.speedup_over(baseline),
        "acceptance": kept,
        "ceiling_measured": costs.ceiling(share) if costs is not None and recycles else None,
        "ceiling_bytes": byte_ceiling(model, strategy.num_recycled, share) if recycles else None,
        "time_to_first_token_s": min(speed.first_token_s),
        "peak_memory_bytes": peak_memory_bytes(model.lm_head.weight.device),
    }


def _bytes_ratio(model: RecycleGPT) -> float:
    """Bytes of module and classifier over those of a backbone pass."""
    return 2 / byte_ceiling(model, 1) - 1
