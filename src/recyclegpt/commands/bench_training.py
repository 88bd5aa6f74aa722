"""`recyclegpt bench-training`: the speed of training steps, with the recyclable module and without it."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from recyclegpt.benchmark.training_speed import StepConfig, StepSpeed, measure_steps, module_shares, variants
from recyclegpt.commands.bench_output import output_folder
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.device import device_and_dtype
from recyclegpt.configuration.instantiate import build_all
from recyclegpt.configuration.pretrained import is_pretrained
from recyclegpt.configuration.schemas import not_positive, read_settings
from recyclegpt.console import print_table
from recyclegpt.errors import ConfigError, Problems, RunError
from recyclegpt.files import finite, write_json
from recyclegpt.hardware.contention import ExternalCpuLoad
from recyclegpt.hardware.device import measured_on, warn_contended
from recyclegpt.models import ModelConfig, RecycleConfig
from recyclegpt.training import LossConfig

FILE_NAME = "training.json"
EXAMPLES = (
    ("a shape with its default module", "model=gpt_125m"),
    ("a deeper module, unrolled twice", "model=gpt_125m recycle.num_layers=6 num_unrolled=2"),
    ("on a GPU, less memory for activations", "model=gpt_350m device=cuda batch_size=32 activation_checkpointing=true"),
)
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


@dataclass
class TrainingSettings:
    """The settings; conf/bench_training.yaml says what each means.

    Raises:
        ConfigError: naming every value that cannot be measured.
    """

    seed: int
    batch_size: int
    row_length: int | None
    accumulate: int
    num_unrolled: int
    compile: bool | str
    activation_checkpointing: bool | int
    vocab_size: int
    repetitions: int
    profile: bool

    def __post_init__(self) -> None:
        names = ("batch_size", "accumulate", "num_unrolled", "vocab_size", "repetitions")
        problems = not_positive(self, *names, *(["row_length"] * (self.row_length is not None)))
        if self.compile not in (True, False, "auto"):
            problems.append(f"compile: {self.compile!r} is neither true, false nor auto")
        if self.activation_checkpointing < 0:
            problems.append(
                f"activation_checkpointing: {self.activation_checkpointing} is neither true nor false; "
                "a whole number n stands for every n-th layer"
            )
        if problems:
            raise ConfigError(problems)


def run(argv: Sequence[str]) -> int:
    """The command."""
    cfg = compose_or_explain("bench_training", list(argv))
    device, shape, recycle, config = read_step(cfg)
    with output_folder(cfg.output_dir) as folder:
        document = measure_training(cfg, device, shape, recycle, config, folder)
        write_json(folder / FILE_NAME, document)
    print(json.dumps(finite(document)))
    return 0


def read_step(cfg: DictConfig) -> tuple[torch.device, ModelConfig, RecycleConfig, StepConfig]:
    """Device, shape, module and what is timed.

    Raises:
        ConfigError: naming all that cannot be measured.
    """
    problems = Problems()
    device, dtype, given = torch.device("cpu"), torch.float32, None
    with problems.under():
        device, dtype = device_and_dtype(cfg.device, cfg.dtype)
    if dtype not in (torch.float32, torch.bfloat16):
        problems.found.append(f"dtype: {cfg.dtype}, but training takes place in bfloat16 or float32")
    with problems.under():
        given = read_settings(TrainingSettings, cfg)
    if is_pretrained(cfg.model):
        problems.found.append(
            "model: training steps are timed on random weights; choose a shape such as model=gpt_125m"
        )
    problems.raise_any()
    assert given is not None
    built = build_all(cfg, ["model", "recycle", "optimizer"], {"model": {"vocab_size": given.vocab_size}})
    shape, recycle = built["model"], built["recycle"]
    row_length = shape.context_length if given.row_length is None else given.row_length
    if row_length > shape.context_length:
        problems.found.append(
            f"row_length: rows of {row_length} do not fit model.context_length={shape.context_length}; "
            "lower one or raise the other"
        )
    if given.num_unrolled > 1 and not recycle.num_layers:
        problems.found.append(f"num_unrolled: {given.num_unrolled} steps without a module; recycle.num_layers is 0")
    with problems.under():
        loss = LossConfig(num_unrolled=given.num_unrolled)
    problems.raise_any()
    config = StepConfig(
        batch=given.batch_size,
        row_length=row_length,
        optimizer=built["optimizer"],
        loss=loss,
        dtype=dtype,
        compile=device.type == "cuda" if given.compile == "auto" else bool(given.compile),
        activation_checkpointing=int(given.activation_checkpointing),
        accumulate=given.accumulate,
        repetitions=given.repetitions,
        seed=given.seed,
    )
    return device, shape, recycle, config


def measure_training(
    cfg: DictConfig, device: torch.device, shape: ModelConfig, recycle: RecycleConfig, config: StepConfig, folder: Path
) -> dict[str, Any]:
    """Measure both models, print the table, and write profiles into the folder if asked.

    Returns:
        The document that `training.json` holds.

    Raises:
        RunError: the device's memory does not suffice.
    """
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda" and config.dtype != torch.float32:
        torch.set_float32_matmul_precision("high")  # as training does
    speeds: dict[str, StepSpeed] = {}
    try:
        with ExternalCpuLoad() as load:
            for name, module in variants(recycle):
                speeds[name], table = measure_steps(shape, module, config, device, cfg.profile)
                print(f"{name}: {speeds[name].row()['tokens_per_s']:,.0f} tokens/s", file=sys.stderr)
                if table:
                    (folder / f"profile_{name}.txt").write_text(table, encoding="utf-8")
                gc.collect()
                torch.cuda.empty_cache()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        raise RunError(
            f"the memory of {device} does not suffice for batch_size={config.batch} rows of {config.row_length}; "
            "lower batch_size (accumulate=... makes up for it), or set activation_checkpointing=true"
        ) from error
    finally:
        torch.set_float32_matmul_precision(precision)
    rows = [
        {"variant": name, "optimizer": cfg.optimizer._target_.rpartition(".")[2], **speed.row()}
        for name, speed in speeds.items()
    ]
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
