"""`recyclegpt bench-training`: the speed of training steps, with the recyclable module and without it."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from recyclegpt.benchmark.training_speed import StepConfig, measure_steps, module_shares
from recyclegpt.commands.bench import output_folder
from recyclegpt.configuration.build import Training, build, not_positive, read_settings
from recyclegpt.configuration.command_settings import device_and_dtype
from recyclegpt.configuration.compose import compose_or_explain, to_plain
from recyclegpt.configuration.train_checks import is_pretrained
from recyclegpt.console import print_table
from recyclegpt.errors import ConfigError, Problems, RunError
from recyclegpt.files import finite, write_json
from recyclegpt.hardware.device import ExternalCpuLoad, device_name, measured_on, peak_flops, warn_contended
from recyclegpt.models import ModelConfig, RecycleConfig
from recyclegpt.training import LossConfig

COLUMNS = {
    "variant": "model", "tokens_per_s": "tokens/s", "mfu": "MFU", "step_s": "step s", "forward_s": "forward",
    "backward_s": "backward", "optimizer_s": "optimizer", "peak_memory_gb": "peak GB",
}  # fmt: skip


@dataclass
class StepSettings(Training):
    """The settings that no group has; conf/bench_training.yaml says what each means."""

    seed: int = 1
    batch_size: int = 16
    row_length: int | None = None
    accumulate: int = 1
    num_unrolled: int = 1
    vocab_size: int = 32000
    repetitions: int = 10

    def __post_init__(self) -> None:
        names = ("batch_size", "row_length", "accumulate", "num_unrolled", "vocab_size", "repetitions")
        problems = Problems(not_positive(self, *names))
        with problems.under():
            super().__post_init__()
        problems.raise_any()


def run(argv: Sequence[str]) -> int:
    cfg = compose_or_explain("bench_training", list(argv))
    device, shape, recycle, config = read_step(cfg)
    with output_folder(cfg.output_dir) as folder:
        document = measure_training(cfg, device, shape, recycle, config)
        write_json(folder / "training.json", document)
    print(json.dumps(finite(document)))
    return 0


def read_step(cfg: DictConfig) -> tuple[torch.device, ModelConfig, RecycleConfig, StepConfig]:
    """Device, shape, module and what is timed.

    Raises:
        ConfigError: naming all that cannot be measured.
    """
    problems = Problems()
    with problems.under():
        device, dtype = device_and_dtype(cfg.device, cfg.dtype)
        if dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"dtype: {cfg.dtype}, but training takes place in bfloat16 or float32")
    with problems.under():
        given = read_settings(StepSettings, cfg)
    if is_pretrained(cfg.model):
        problems.found.append("model: steps are timed on random weights; choose a shape such as model=gpt_125m")
    problems.raise_any()
    plain = to_plain(cfg)
    plain["model"]["vocab_size"] = given.vocab_size
    built = build({key: plain[key] for key in ("model", "recycle", "optimizer")})
    shape = built["model"]
    row_length = given.row_length or shape.context_length
    if row_length > shape.context_length:
        raise ConfigError(f"row_length: {row_length} exceeds model.context_length={shape.context_length}; lower it")
    config = StepConfig(
        given.batch_size, row_length, built["optimizer"], LossConfig(num_unrolled=given.num_unrolled), dtype,
        given.compile, given.activation_checkpointing, given.accumulate, given.repetitions, given.seed,
    )  # fmt: skip
    return device, shape, built["recycle"], config


def measure_training(
    cfg: DictConfig, device: torch.device, shape: ModelConfig, recycle: RecycleConfig, config: StepConfig
) -> dict[str, Any]:
    """Measure the model and the control without a module, and print the table.

    Returns:
        The document that `training.json` holds.

    Raises:
        RunError: the device's memory does not suffice.
    """
    if device.type == "cuda" and config.dtype != torch.float32:
        torch.set_float32_matmul_precision("high")  # as training does
    rows: dict[str, dict[str, Any]] = {}
    try:
        with ExternalCpuLoad() as load:
            for name, module in {"module": recycle, "none": RecycleConfig(num_layers=0)}.items():
                if name == "module" and not recycle.num_layers:
                    continue
                rows[name] = measure_steps(shape, module, config, device)
                print(f"{name}: {rows[name]['tokens_per_s']:,.0f} tokens/s", file=sys.stderr)
                gc.collect()
                torch.cuda.empty_cache()
    except RuntimeError as error:
        # On a CPU torch has no error of its own for it.
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise RunError(
            f"the memory of {device} does not suffice for batch_size={config.batch} rows of {config.row_length}; "
            "lower batch_size (accumulate=... makes up for it), or set activation_checkpointing=true"
        ) from error
    optimizer = cfg.optimizer._target_.rpartition(".")[2]
    document = {
        "hardware": {**measured_on(device, load.share), "peak_flops": peak_flops(device_name(device))},
        "rows": [{"variant": name, "optimizer": optimizer, **row} for name, row in rows.items()],
        "module": module_shares(rows["module"], rows["none"]) if "module" in rows else None,
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
    if shares := document["module"]:
        print(f"the module adds {shares['flops_share']:.1%} operations and {shares['time_share']:.1%} time")
    warn_contended(hardware)
