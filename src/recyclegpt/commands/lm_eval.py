"""`recyclegpt evaluate tasks=[...]`: benchmarks of `lm-eval`, scored by the backbone, the module, and both in turn."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.device import computing_dtype, device_and_dtype
from recyclegpt.configuration.schemas import not_positive, read_settings
from recyclegpt.console import print_table
from recyclegpt.decoding import Autoregressive, Decoder, DecodingConfig
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.evaluation.batch_generator import BatchGenerator
from recyclegpt.evaluation.local_tasks import LOCAL
from recyclegpt.evaluation.scoring import SCORINGS, Scorer

log = logging.getLogger("recyclegpt")

WRITTEN = "written"
"""Column of the tasks that want text to be written: a decoder's, whatever the scoring is."""
Results = dict[str, dict[str, Any]]
"""By task: number of samples and, by metric and column, value and standard error."""


@dataclass
class TaskSettings:
    """The settings of `tasks=`; conf/evaluate.yaml says what each means.

    Raises:
        ConfigError: naming every value out of range.
    """

    tasks: list[str]
    tasks_path: str | None
    scorings: list[str]
    limit: int | float | None
    num_fewshot: int | None
    batch_size: int
    bootstrap_iters: int
    seed: int

    def __post_init__(self) -> None:
        problems = not_positive(self, "batch_size")
        problems += [
            f"scorings: {name!r} is unknown; choose from {', '.join(SCORINGS)}"
            for name in self.scorings
            if name not in SCORINGS
        ]
        if not self.scorings:
            problems.append("scorings: the list is empty; give at least one value")
        if self.limit is not None and not (0 < self.limit < 1 or (self.limit >= 1 and self.limit == int(self.limit))):
            problems.append(f"limit: {self.limit} is neither a positive whole number nor a share between 0 and 1")
        problems += [
            f"{name}: {value} is negative"
            for name in ("num_fewshot", "bootstrap_iters", "seed")
            if (value := getattr(self, name)) is not None and value < 0
        ]
        if problems:
            raise ConfigError(problems)


def evaluate_tasks(cfg: DictConfig) -> dict[str, Any]:
    """Score, and print the table. Everything is checked before a model is loaded, the tasks' data included.

    Returns:
        The document that is printed last.
    """
    problems = Problems()
    with problems.under():
        settings = read_settings(TaskSettings, cfg)
    with problems.under():
        decoding = read_settings(DecodingConfig, cfg.decoding, "decoding")
    with problems.under():
        device, dtype = device_and_dtype(cfg.device, cfg.dtype)
    with problems.under():
        _, decoding_dtype = device_and_dtype(cfg.device, str(cfg.decoding.dtype), "decoding.", decoding=True)
    problems.raise_any()
    names, local = _tasks(cfg, settings.tasks)
    from recyclegpt.evaluation.lm_eval_adapter import RecycleLM, find_tasks, run_tasks

    tasks = find_tasks([local.get(name, name) for name in names], settings.tasks_path)
    trained = load_trained(cfg.checkpoint, device)
    dtype = computing_dtype(cfg.dtype, dtype, trained.config)
    if dtype == torch.float64:
        trained.model.double()
    scorer = Scorer(
        trained.model, settings.scorings, decoding.num_recycled, settings.batch_size,
        autocast=dtype if dtype in (torch.bfloat16, torch.float16) else None,
    )  # fmt: skip
    strategy, generator = decoding.make_strategy(), None
    if tasks.generative:
        if trained.model.recyclable is None and strategy.num_recycled:
            log.warning("the model has no recyclable module, so texts are written autoregressively")
            strategy = Autoregressive()
        decoder = Decoder.optimised(trained.model, decoding_dtype, decoding.compile)
        generator = BatchGenerator(decoder, strategy, trained.tokenizer, settings.batch_size, decoding.seed)
    results: Results = {}
    for scoring in scorer.scorings:
        adapter = RecycleLM(scorer, trained.tokenizer, scoring, generator)
        scored = run_tasks(
            tasks, adapter, settings.limit, settings.num_fewshot, settings.bootstrap_iters, settings.seed
        )
        for name, result in scored.items():
            column = WRITTEN if name in tasks.generative else scoring
            row = results.setdefault(name, {"num_samples": result["num_samples"], "metrics": {}})
            for metric, value in result["metrics"].items():
                row["metrics"].setdefault(metric, {})[column] = value
        if tasks.generative >= set(scored):
            break  # texts are written once, and nothing is scored
    _print(results, [*scorer.scorings], tasks.summed_up)
    parts = [f"scored in {str(dtype).removeprefix('torch.')}"]
    if "alternating" in scorer.scorings:
        parts.append(f"alternating with {scorer.num_recycled} drafted token{'s' * (scorer.num_recycled > 1)}")
    if tasks.generative:
        parts.append(f"texts written by {strategy.name} decoding")
    if settings.limit is not None:
        parts.append(f"at most {settings.limit} examples of a task: a quick look, not a result")
    print(f"\n{'; '.join(parts)}")
    return {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "dtype": str(dtype).removeprefix("torch."),
        "scorings": list(scorer.scorings),
        "num_recycled": scorer.num_recycled,
        "strategy": strategy.name,
        **{name: getattr(settings, name) for name in ("limit", "num_fewshot", "bootstrap_iters", "seed")},
        "num_cut": scorer.num_cut,
        "tasks": results,
    }


def _tasks(cfg: DictConfig, wanted: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Names of all tasks, families spelt out, and the tasks that are made from files the user names.

    Raises:
        ConfigError: files are not named, or hold something else.
    """
    names: list[str] = []
    for name in wanted:
        names += cfg.task_families.get(name, [name])
    names = list(dict.fromkeys(names))
    problems, local = [], {}
    for name in names:
        if name in LOCAL:
            files = cfg.task_files[name]
            if files is None:
                problems.append(f"tasks: {name} is read from your files; set task_files.{name}=...")
                continue
            try:
                local[name] = LOCAL[name](OmegaConf.to_object(files) if isinstance(files, ListConfig) else files)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    return names, local


def _print(results: Results, scorings: list[str], summed_up: set[str]) -> None:
    """A row a task and metric; tasks whose group has a number for all of them stand in the document alone."""
    shown = {name: result for name, result in results.items() if name not in summed_up}
    used = {column for result in shown.values() for values in result["metrics"].values() for column in values}
    columns = [column for column in [*scorings, WRITTEN] if column in used]
    compared = {"backbone", "alternating"} <= used
    rows = []
    for name, result in shown.items():
        for metric, values in result["metrics"].items():
            row: list[object] = [name, metric, result["num_samples"]]
            for column in columns:
                found = values.get(column, {})
                row += [found.get("value"), found.get("stderr")]
            if compared:
                both = [values[column]["value"] for column in ("alternating", "backbone") if column in values]
                row.append(_difference(*both) if len(both) == 2 else None)
            rows.append(tuple(row))
    header = ["task", "metric", "n", *(word for column in columns for word in (column, "stderr"))]
    print_table(rows, header=[*header, *(["alternating - backbone"] if compared else [])])


def _difference(one: float, other: float) -> float:
    """One less the other, 0 where the two differ by rounding alone."""
    return 0.0 if math.isclose(one, other, rel_tol=1e-12) else one - other
