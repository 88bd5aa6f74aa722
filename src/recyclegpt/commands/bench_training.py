"""`recyclegpt bench training=true`: the speed of training steps, with the recyclable module and without it."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch.nn import Parameter
from torch.optim import Optimizer

from recyclegpt.benchmark.training_speed import StepConfig, StepSpeed, measure_steps, module_shares, variants
from recyclegpt.configuration.device import choose_device
from recyclegpt.configuration.instantiate import build_all
from recyclegpt.configuration.pretrained import is_pretrained
from recyclegpt.configuration.schemas import STEP, type_problems
from recyclegpt.console import print_table
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.hardware.contention import ExternalCpuLoad
from recyclegpt.hardware.description import measured_on, warn_contended
from recyclegpt.models import ModelConfig, RecycleConfig
from recyclegpt.training import LossConfig, MuonAdamW, adamw

FILE_NAME = "training.json"
OPTIMIZERS: Mapping[str, Callable[[Iterable[tuple[str, Parameter]]], Optimizer]] = {
    "adamw": functools.partial(adamw, lr=1e-4),
    "muon": functools.partial(MuonAdamW, lr=1e-4),
}
SHARED = ("bench.output", "bench.vocab_size")
"""Settings of decoding's benchmark that this one reads too."""
NO_MEMORY = ("DefaultCPUAllocator", "Storage size calculation overflowed")
"""What a RuntimeError says on a CPU, where torch has no error of its own for it."""
COLUMNS = {
    "variant": "model",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU",
    "step_s": "step s",
    "forward_s": "forward",
    "backward_s": "backward",
    "optimizer_s": "optimizer",
    "peak_memory_gb": "peak GB",
}


class Asked(NamedTuple):
    """What a config asks to be measured."""

    device: torch.device
    shape: ModelConfig
    recycle: RecycleConfig
    config: StepConfig


def misplaced(cfg: DictConfig, argv: Sequence[str]) -> list[str]:
    """Settings of the one benchmark given to the other, where they would mean nothing."""
    if not isinstance(cfg.training, bool):
        return [f"training: {cfg.training!r} is neither true nor false"]
    keys = [argument.lstrip("+~").partition("=")[0] for argument in argv]
    if not cfg.training:
        return [
            f"{key}: is about training steps; add training=true, or leave it out"
            for key in keys
            if key.startswith("step.")
        ]
    problems = [
        f"{key}: is about decoding and training=true is not; leave one of the two out (training steps have step.*)"
        for key in keys
        if key.startswith("bench.") and key not in SHARED
    ]
    return problems + [
        f"{key}: training=true times random weights of model and recycle; leave {key} out"
        for key in ("checkpoint", "runs", "prompts")
        if cfg[key] is not None
    ]


def read_settings(cfg: DictConfig) -> Asked:
    """Everything that is looked at before the first step.

    Raises:
        ConfigError: naming all that cannot be measured.
    """
    given = cfg.step
    wrong = type_problems(given, STEP, "step.") + type_problems(cfg, {"device": str, "seed": int})
    if wrong := wrong + type_problems(cfg.bench, {"output": str | None, "vocab_size": int}, "bench."):
        raise ConfigError(wrong)
    vocabulary = cfg.bench.vocab_size
    counts = {f"step.{key}": given[key] for key in ("batch", "row_length", "accumulate", "repetitions", "num_unrolled")}
    problems = [
        f"{key}: {value} is not a positive whole number"
        for key, value in {**counts, "bench.vocab_size": vocabulary}.items()
        if value is not None and value < 1
    ]
    if given.optimizer not in OPTIMIZERS:
        problems.append(f"step.optimizer: {given.optimizer!r} is unknown; choose from {', '.join(OPTIMIZERS)}")
    if not isinstance(given.compile, bool) and given.compile != "auto":
        problems.append(f"step.compile: {given.compile!r} is neither true, false nor auto")
    if given.activation_checkpointing < 0:
        problems.append(
            f"step.activation_checkpointing: {given.activation_checkpointing} is neither true nor false; "
            "a whole number n stands for every n-th layer"
        )
    device, dtype = choose_device(cfg.device, given.dtype, problems, "step.dtype")
    if dtype not in (torch.float32, torch.bfloat16):
        problems.append(f"step.dtype: {given.dtype}, but training knows bfloat16 and float32 alone")
    if is_pretrained(cfg.model):
        problems.append("model: training=true times random weights of a shape; choose model=gpt_125m or another shape")
    if problems:
        raise ConfigError(problems)
    built = build_all(cfg, ["model", "recycle"], {"model": {"vocab_size": vocabulary}})
    shape: ModelConfig = built["model"]
    row_length = shape.context_length if given.row_length is None else given.row_length
    if row_length > shape.context_length:
        problems.append(
            f"step.row_length: rows of {row_length} do not fit model.context_length={shape.context_length}; "
            "lower one or raise the other"
        )
    if given.num_unrolled > 1 and not built["recycle"].num_layers:
        problems.append(f"step.num_unrolled: {given.num_unrolled} steps of no module; recycle.num_layers is 0")
    try:
        loss = LossConfig(num_unrolled=given.num_unrolled)
    except ConfigError as error:
        problems += [f"step.{problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    config = StepConfig(
        batch=given.batch,
        row_length=row_length,
        optimizer=OPTIMIZERS[given.optimizer],
        loss=loss,
        dtype=dtype,
        compile=device.type == "cuda" if given.compile == "auto" else given.compile,
        activation_checkpointing=int(given.activation_checkpointing),
        accumulate=given.accumulate,
        repetitions=given.repetitions,
        seed=cfg.seed,
    )
    return Asked(device, shape, built["recycle"], config)


def measure_training(cfg: DictConfig, asked: Asked, folder: Path) -> dict[str, Any]:
    """Measure both models, print the table, and write profiles into the folder if asked.

    Returns:
        The document that `training.json` holds.

    Raises:
        RunError: the device's memory does not suffice.
    """
    device, shape, recycle, config = asked
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda" and config.dtype != torch.float32:
        torch.set_float32_matmul_precision("high")  # as training does
    speeds: dict[str, StepSpeed] = {}
    try:
        with ExternalCpuLoad() as load:
            for name, module in variants(recycle):
                speeds[name], table = measure_steps(shape, module, config, device, cfg.step.profile)
                print(f"{name}: {speeds[name].row()['tokens_per_s']:,.0f} tokens/s", file=sys.stderr)
                if table:
                    (folder / f"profile_{name}.txt").write_text(table, encoding="utf-8")
                gc.collect()
                torch.cuda.empty_cache()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        raise RunError(
            f"the memory of {device} does not suffice for step.batch={config.batch} rows of {config.row_length}; "
            "lower step.batch (step.accumulate=... makes up for it), or set step.activation_checkpointing=true"
        ) from error
    finally:
        torch.set_float32_matmul_precision(precision)
    rows = [{"variant": name, "optimizer": cfg.step.optimizer, **speed.row()} for name, speed in speeds.items()]
    document = {
        "hardware": {**measured_on(device, load.share), "peak_flops": speeds["none"].peak_flops},
        "rows": rows,
        "module": module_shares(speeds["module"], speeds["none"]) if "module" in speeds else None,
    }
    _print(document)
    return document


def _print(document: dict[str, Any]) -> None:
    cells = [row | {"peak_memory_gb": row["peak_memory_bytes"] / 1e9} for row in document["rows"]]
    print_table([[row[key] for key in COLUMNS] for row in cells], header=list(COLUMNS.values()))
    row, hardware = document["rows"][0], document["hardware"]
    print(
        f"\n{row['batch']} rows of {row['row_length']} tokens, {row['accumulate']} pass(es) a step, "
        f"{row['optimizer']}, {row['dtype']}, compile {row['compile']}, on {hardware['device']}, "
        f"{hardware['threads']} threads"
    )
    if document["module"] is not None:
        shares = document["module"]
        print(f"the module adds {shares['flops_share']:.1%} operations and {shares['time_share']:.1%} time")
    warn_contended(hardware)
