"""`recyclegpt bench`: how fast the decoders are, beside the speed that the cost of their passes allows."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recyclegpt.commands.bench_decoding import measure, read_settings
from recyclegpt.commands.bench_folder import output_folder
from recyclegpt.commands.bench_training import FILE_NAME as TRAINING_FILE
from recyclegpt.commands.bench_training import measure_training, misplaced
from recyclegpt.commands.bench_training import read_settings as read_training_settings
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.errors import ConfigError
from recyclegpt.files import finite, write_json
from recyclegpt.reporting.bench_figure import draw_bench

log = logging.getLogger("recyclegpt")

HELP = """usage: recyclegpt bench [KEY=VALUE ...]

Speed of the decoders beside their ceilings. model=... and recycle=... (random weights: speed does not depend on them,
acceptance does), checkpoint=RUN_FOLDER, or runs=SWEEP_FOLDER for every complete run in it; prompts=FILE.jsonl with a
checkpoint: a set of prompts by category; lists of bench.strategies,
bench.num_recycled, bench.batch, bench.prompt_tokens, bench.new_tokens, bench.recycle_num_layers, bench.dtype,
bench.compile, bench.acceptance; bench.baselines=[transformers], bench.num_prompts, bench.repetitions, bench.stages,
bench.output; device.
training=true: the speed of training steps of model and recycle, with the module and without it; step.batch,
step.row_length, step.accumulate, step.num_unrolled, step.optimizer, step.dtype, step.compile,
step.activation_checkpointing, step.repetitions, step.profile.
Prints a table, writes bench.json and bench.png; the last line is one JSON document."""


def run(argv: Sequence[str]) -> int:
    """The command."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP)
        return 0
    cfg = compose_or_explain("bench", list(argv), also_check=lambda cfg: misplaced(cfg, argv))
    if cfg.training:
        document = _bench_training(cfg)
    elif cfg.prompts is not None:
        document = _bench_prompts(cfg)
    elif cfg.runs is not None:
        from recyclegpt.commands.bench_runs import bench_runs

        document = bench_runs(cfg)
    else:
        read_settings(cfg)  # a mistake there leaves no folder behind
        with output_folder(cfg) as folder:
            document = measure(cfg)
            write_json(folder / "bench.json", document)
            _draw(folder, document)
    print(json.dumps(finite(document)))
    return 1 if document.get("failed") else 0


def _bench_training(cfg: DictConfig) -> dict[str, Any]:
    asked = read_training_settings(cfg)
    with output_folder(cfg) as folder:
        document = measure_training(cfg, asked, folder)
        write_json(folder / TRAINING_FILE, document)
    return document


def _bench_prompts(cfg: DictConfig) -> dict[str, Any]:
    from recyclegpt.commands.bench_prompts import FILE_NAME, measure_prompts, setting_problems

    device, configs = read_settings(cfg)
    if problems := setting_problems(cfg):
        raise ConfigError(problems)
    with output_folder(cfg) as folder:
        document = measure_prompts(cfg, device, configs[0])
        write_json(folder / FILE_NAME, document)
    return document


def _draw(folder: Path, document: dict[str, Any]) -> None:
    try:
        draw_bench(document, folder / "bench.png")
    except ImportError:
        log.warning("bench.png was not drawn: pip install 'recyclegpt[report]'")
